"""What a vLLM's own metrics say: counters and gauges move with each of its steps, not with its log interval."""

import aiohttp


async def gauge(http: aiohttp.ClientSession, url: str, name: str) -> float:
    """The sum of a metric's samples."""
    async with http.get(f"{url}/metrics") as response:
        text = await response.text()
    samples = (line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))
    return sum(float(sample) for sample in samples)


async def running(http: aiohttp.ClientSession, urls: list[str]) -> float:
    """Requests that the engines run."""
    return sum([await gauge(http, url, "num_requests_running") for url in urls])
