"""An engine that calls itself well and breaks what it gets: it is left out, tried now and then, and taken back."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from dualmap_cli.stack import Stack

from ..waiting import eventually
from .conftest import chat, leftovers, post, unique_text
from .odd_engine import GOOD, OddEngine, answer, odd_engine

POOL = "breakers"
FAILURES = 5
BAD = answer(
    "500 Internal Server Error", b'{"error": {"message": "out of cheese"}}', "content-type: application/json"
)
FINE = answer("200 OK", GOOD, "content-type: application/json")
REFUSED = answer("400 Bad Request", b'{"error": {"message": "no"}}', "content-type: application/json")


@pytest.fixture
def odd() -> Iterator[OddEngine]:
    with odd_engine() as engine:
        yield engine


@pytest.fixture
async def url(system: Stack, odd: OddEngine, http: aiohttp.ClientSession) -> AsyncIterator[str]:
    """A router of a pool with that engine and two that are well; it tries a broken one after a second."""
    engines = [odd.url, *system.engine_urls[:2]]
    workers = [system.start_worker(engine, pool=POOL) for engine in engines]
    router = system.start_router(pool=POOL, breaker_failures=FAILURES, breaker_s=1.0)
    for worker in workers:
        await system.event(worker, "worker.ready")
    url = str((await system.event(router, "router.ready"))["url"])

    async def reaches_all() -> bool:
        async with http.get(f"{url}/readyz") as response:
            return len((await response.json()).get("instances", ())) == len(engines)

    await eventually(reaches_all)
    yield url
    assert (await leftovers(system, POOL, [url])).clean
    for name in (router, *workers):
        await system.children[name].stop()


async def asked(http: aiohttp.ClientSession, url: str, times: int) -> list[int]:
    """Statuses of so many requests that share nothing, one after the other."""
    return [(await post(http, url, "/v1/chat/completions", chat(unique_text())))[0] for _ in range(times)]


async def test_who_answers_with_errors_is_left_out_and_taken_back(
    odd: OddEngine, url: str, http: aiohttp.ClientSession
) -> None:
    odd.says = BAD
    statuses = await asked(http, url, 60)
    # As many as it takes, and those that tried it since.
    assert FAILURES <= statuses.count(500) == odd.asked <= FAILURES + 4
    assert set(statuses) == {200, 500}
    odd.says, odd.asked = FINE, 0

    async def is_back() -> bool:
        await asked(http, url, 3)
        return odd.asked > 3

    await eventually(is_back, 30.0)
    assert set(await asked(http, url, 10)) == {200}


async def test_who_breaks_http_is_not_paid_an_attempt_each_time(
    odd: OddEngine, url: str, http: aiohttp.ClientSession
) -> None:
    odd.says = b"lorem ipsum\r\n\r\n"
    assert set(await asked(http, url, 60)) == {200}
    assert FAILURES <= odd.asked <= FAILURES + 4


async def test_what_a_client_did_wrong_is_no_failure(
    odd: OddEngine, url: str, http: aiohttp.ClientSession
) -> None:
    odd.says = REFUSED
    statuses = await asked(http, url, 60)
    assert statuses.count(400) == odd.asked > 2 * FAILURES
