"""What a router says of itself."""

import time

import aiohttp

from dualmap_cli.doctor.clocks import Clocks, GoesBy
from dualmap_cli.doctor.finding import Finding


async def router_finding(url: str, clocks: Clocks) -> Finding:
    """How one router is."""
    timeout = aiohttp.ClientTimeout(total=3)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http:
            asked_s = time.time()
            async with http.get(f"{url}/readyz") as response:
                answered_s = time.time()
                state = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
        return Finding(
            "bad",
            url,
            f"no router answers: {exc!r}",
            "Is it the address that the router's `router.ready` names, and does it still run?",
        )
    if not isinstance(state, dict) or "ready" not in state:
        return Finding(
            "bad", url, "what answers is no router", "Compare it with the router's --host and --port."
        )
    told_s = state.get("clock_s")
    if told_s is not None:
        clocks.read(url, GoesBy.ROUTER, told_s, asked_s, answered_s)
    if not state["ready"]:
        return Finding(
            "bad",
            url,
            f"not ready: reaches {state['instances'] or 'no instance'}",
            "Compare its --pool and --redis-url.",
        )
    if state["store"] != "available":
        return Finding(
            "warn",
            url,
            "decides by itself: it does not reach the store",
            "Check its --redis-url and the network.",
        )
    return Finding("ok", url, f"ready, reaches {', '.join(state['instances'])}")
