"""The feed of KV events over real sockets: gaps filled, restarts noticed, losses known."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
import zmq

from dualmap_service.ports import free_ports
from dualmap_sim.engine.block_cache import BlocksRemoved, BlocksStored
from dualmap_sim.engine.kv_events import KvDialect, ZmqKvPublisher
from dualmap_worker.errors import KvEventError
from dualmap_worker.kv_feed import KvFeed
from dualmap_worker.kv_wire import KvEvent, decode_batch

from ...waiting import eventually


class Publisher:
    """An engine's publisher that stays on its ports, and whose live side can be made deaf."""

    def __init__(self, **options: object) -> None:
        self.ports = {"port": free_ports(), "replay_port": free_ports()}
        self.options = options
        self.number = 0
        self.start()

    def start(self) -> None:
        self.now = ZmqKvPublisher(16, **self.ports, **self.options)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.now.run())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.now.close()

    def store(self, count: int = 1) -> None:
        """That many batches, each of one new block."""
        for _ in range(count):
            self.number += 1
            self.now.publish([BlocksStored((self.number,), None, b"\0" * 64, "", f"s{self.number}")])

    def store_unseen(self, count: int = 1) -> None:
        """The same, lost on the way: only the replay knows of them."""
        pub, self.now._pub = self.now._pub, self.now._context.socket(zmq.PUB)
        self.store(count)
        self.now._pub.close(0)
        self.now._pub = pub


class Follower:
    """A feed, and what came of it."""

    def __init__(self, publisher: Publisher, replay: bool = True) -> None:
        url = f"tcp://127.0.0.1:{publisher.ports['port']}"
        replay_url = f"tcp://127.0.0.1:{publisher.ports['replay_port']}" if replay else ""
        self.events: list[KvEvent] = []
        self.missed = 0
        self.restarts = 0
        self.feed = KvFeed(url, replay_url, self.follow, self.miss, self.restart)
        self.task = asyncio.create_task(self.feed.run())

    def follow(self, events: Sequence[KvEvent]) -> None:
        self.events += events

    def miss(self) -> None:
        self.missed += 1

    def restart(self) -> None:
        self.restarts += 1
        self.events.clear()

    @property
    def blocks(self) -> list[object]:
        return [block for event in self.events for block in event.block_hashes]

    async def has(self, *numbers: int) -> None:
        await eventually(lambda: self.blocks == list(numbers))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.feed.close()


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    publisher = Publisher()
    yield publisher
    await publisher.stop()


@pytest.fixture
async def follower(publisher: Publisher) -> AsyncIterator[Follower]:
    publisher.store(2)
    follower = Follower(publisher)
    await follower.has(1, 2)
    yield follower
    await follower.stop()


async def test_what_was_before_is_replayed_and_what_comes_is_followed(
    publisher: Publisher, follower: Follower
) -> None:
    publisher.store(3)
    await follower.has(1, 2, 3, 4, 5)
    assert [event.session_id for event in follower.events] == ["s1", "s2", "s3", "s4", "s5"]
    assert (follower.missed, follower.restarts, follower.feed.num_lost) == (0, 0, 0)


async def test_a_gap_is_filled_in_order(publisher: Publisher, follower: Follower) -> None:
    publisher.store_unseen(3)
    publisher.store()
    await follower.has(1, 2, 3, 4, 5, 6)
    assert follower.missed == 0


async def test_what_was_lost_at_the_very_end_comes_with_the_next_check(
    publisher: Publisher, follower: Follower
) -> None:
    publisher.store_unseen()
    await follower.has(1, 2, 3)
    assert follower.missed == 0


@pytest.mark.parametrize("batches", [0, 1, 2, 5])
async def test_an_engine_that_began_anew_is_noticed_however_far_it_has_come(
    publisher: Publisher, follower: Follower, batches: int
) -> None:
    await publisher.stop()
    publisher.number = 100
    publisher.start()
    publisher.store(batches)
    await eventually(lambda: follower.restarts == 1)
    await follower.has(*range(101, 101 + batches))
    publisher.store()
    await follower.has(*range(101, 102 + batches))
    assert (follower.restarts, follower.missed) == (1, 0)


async def test_a_buffer_that_is_too_short_loses_and_says_so() -> None:
    publisher = Publisher(buffer_steps=2)
    publisher.store()
    follower = Follower(publisher)
    await follower.has(1)
    publisher.store_unseen(5)
    publisher.store()
    await follower.has(1, 6, 7)
    assert (follower.missed, follower.feed.num_lost, follower.restarts) == (1, 1, 0)
    await follower.stop()
    await publisher.stop()


async def test_without_replay_a_gap_is_a_loss_and_a_lower_number_a_restart(publisher: Publisher) -> None:
    follower = Follower(publisher, replay=False)

    async def arrive() -> bool:
        publisher.store()
        await asyncio.sleep(0.02)
        return bool(follower.events)

    await eventually(arrive)
    # So far that the new one cannot be past it before it is heard.
    publisher.store(2000)
    await eventually(lambda: publisher.number in follower.blocks)
    before, missed = follower.blocks, follower.missed
    publisher.store_unseen()
    publisher.store()
    await follower.has(*before, publisher.number)
    assert (follower.missed, follower.restarts) == (missed + 1, 0)
    await publisher.stop()
    publisher.start()

    async def restarted() -> bool:
        await arrive()
        return follower.restarts == 1

    await eventually(restarted)
    await follower.stop()


async def test_a_replay_that_nobody_answers_holds_nothing_up_for_long(publisher: Publisher) -> None:
    follower = Follower(publisher)
    follower.feed._replay_url = f"tcp://127.0.0.1:{free_ports()}"

    async def arrive() -> bool:
        publisher.store()
        await asyncio.sleep(0.05)
        return bool(follower.events)

    await eventually(arrive, timeout_s=60)
    await follower.stop()


async def test_garbage_is_passed_over_and_counted_as_a_loss(publisher: Publisher, follower: Follower) -> None:
    publisher.now._pub.send_multipart((b"", (2).to_bytes(8, "big"), b"\xc1 no msgpack"))
    publisher.now._next_seq += 1
    publisher.now._pub.send_multipart((b"only one frame",))
    publisher.store()
    await follower.has(1, 2, 3)
    assert follower.missed == 1


def test_both_encodings_are_read() -> None:
    event = {
        "type": "BlockStored",
        "block_hashes": [1, b"\x02" * 32],
        "parent_block_hash": None,
        "token_ids": [5],
    }
    new = decode_batch(msgspec.msgpack.encode([1.0, [{**event, "block_size": 16, "session_id": "s"}], 0]))
    old = decode_batch(msgspec.msgpack.encode([1.0, [["BlockStored", [1], 7, [5], 16, None, "GPU"]]]))
    gone = decode_batch(msgspec.msgpack.encode([1.0, [["BlockRemoved", [1]], ["AllBlocksCleared"]]]))
    assert new == [KvEvent("BlockStored", (1, b"\x02" * 32), None, 16, session_id="s")]
    assert old == [KvEvent("BlockStored", (1,), 7, 16, "GPU")]
    assert gone == [KvEvent("BlockRemoved", (1,)), KvEvent("AllBlocksCleared")]


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01\x02", msgspec.msgpack.encode([1.0, [[]]])])
def test_what_is_no_batch_is_an_error(payload: bytes) -> None:
    with pytest.raises(KvEventError):
        decode_batch(payload)


@pytest.mark.parametrize("dialect", list(KvDialect))
async def test_the_simulated_engine_speaks_both(dialect: KvDialect) -> None:
    publisher = Publisher(dialect=dialect)
    publisher.store(2)
    publisher.now.publish([BlocksRemoved((1,))])
    follower = Follower(publisher)
    await follower.has(1, 2, 1)
    await follower.stop()
    await publisher.stop()
