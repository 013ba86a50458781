"""What the tests of a system with API keys share: its keys and asking with them."""

import json
import time
from pathlib import Path
from typing import Any

import aiohttp

from ..services.router.keys_file import entry, write
from .conftest import post

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ACME, SECOND, OTHER, ADMIN = "key-acme-0001", "key-acme-0002", "key-other-003", "key-admin-004"
FEW, SLOW = "key-few-00005", "key-slow-0006"
AT_ONCE, BURST = 3, 4

ENTRIES = (
    entry(ACME),
    entry(SECOND),
    entry(OTHER, tenant="other"),
    entry(ADMIN, tenant="ops", admin=True),
    entry(FEW, tenant="few", concurrency=AT_ONCE),
    entry(SLOW, tenant="slow", requests_per_s=0.05, burst=BURST),
)


def write_keys(path: Path, *more: dict[str, Any]) -> Path:
    """The file with all of the keys."""
    return write(path, *ENTRIES, *more)


def spoil(path: Path) -> None:
    """Leave half a file."""
    path.write_bytes(path.read_bytes()[:100])


async def ask(
    http: aiohttp.ClientSession, url: str, key: str, path: str, body: Any, **headers: str
) -> tuple[int, Any, "aiohttp.typedefs.CIMultiDictProxy[str]"]:
    """A POST with a key."""
    return await post(http, url, path, body, authorization=f"Bearer {key}", **headers)


async def timed(
    http: aiohttp.ClientSession, url: str, key: str, prompt: str, **fields: Any
) -> tuple[float, int]:
    """(seconds to the first token, cached tokens) of a streamed completion."""
    headers = {"authorization": f"Bearer {key}", **fields.pop("headers", {})}
    body = {"model": "sim-model", "prompt": prompt, "max_tokens": 4, "stream": True, **fields}
    body["stream_options"] = {"include_usage": True}
    start_s = time.perf_counter()
    async with http.post(url + TEXT, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        first = await response.content.readany()
        ttft_s = time.perf_counter() - start_s
        text = first + await response.read()
    events = [line[6:] for line in text.split(b"\n") if line.startswith(b"data: {")]
    usage = json.loads(events[-1])["usage"]
    return ttft_s, int(usage["prompt_tokens_details"]["cached_tokens"])
