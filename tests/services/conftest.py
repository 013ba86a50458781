"""What the tests of all services use."""

from collections.abc import AsyncIterator

import pytest

from dualmap_service.access import AccessSettings
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore


@pytest.fixture
async def shared(store: EmbeddedStore) -> AsyncIterator[Store]:
    """A service's connection to the store."""
    connection = Store(AccessSettings(redis_url=store.url), "test")
    assert await connection.start()
    yield connection
    await connection.close()
