"""A pool in an empty store with the functions loaded."""

from collections.abc import Iterator

import pytest
import redis

from dualmap_sim.embedded_store import EmbeddedStore
from tests.wire.pool import WirePool


@pytest.fixture
def pool(store: EmbeddedStore) -> Iterator[WirePool]:
    with redis.Redis.from_url(store.url) as client:
        yield WirePool(client)
