"""What every test may use: an empty store, programs of the machine, and how hard hypothesis tries."""

import asyncio
import os
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, settings

from dualmap_sim.embedded_store import EmbeddedStore

from . import needs

# Deadlines measure the machine, not the code. The store is flushed by examples that need it empty.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("dev", _COMMON, max_examples=50)
settings.register_profile("ci", _COMMON, max_examples=100, derandomize=True)
settings.register_profile("deep", _COMMON, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): what the test cannot run without; see tests/needs.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before any fixture, which may want the program.
    needs.check(item)


@pytest.fixture(scope="session")
def session_store() -> Iterator[EmbeddedStore]:
    """One Valkey per test process (so one per xdist worker); tests take `store`."""
    store = EmbeddedStore()
    with asyncio.Runner() as runner:
        runner.run(store.start())
        try:
            yield store
        finally:
            runner.run(store.stop())


@pytest.fixture
def store(session_store: EmbeddedStore) -> Iterator[EmbeddedStore]:
    """An empty store without functions; a test may pause, kill or restart it."""
    _recover(session_store)
    with redis.Redis.from_url(session_store.url) as client:
        client.flushall()
        client.function_flush()
    yield session_store
    _recover(session_store)


def _recover(store: EmbeddedStore) -> None:
    """Undo a pause or a kill."""
    if store.running:
        store.resume()
        return
    with asyncio.Runner() as runner:
        runner.run(store.restart())
