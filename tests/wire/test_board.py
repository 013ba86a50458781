"""The board crosses from one rebalancer to any router."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_wire.board import Board, Posted, PostedMove, decode_board, encode_board
from dualmap_wire.errors import WireError

BOARD = Board(
    rebalancer="r1",
    hot=("w2",),
    instances={"w1": Posted(age_s=0.1, queued=3, busy_s=1.5, kv_use=0.5)},
    moves=(PostedMove("id", "w2", "w1", 0.25, "done", 4.0),),
)


def test_it_comes_back_as_it_was() -> None:
    assert decode_board(encode_board(BOARD)) == BOARD


def test_a_later_release_may_say_more() -> None:
    plain = msgspec.msgpack.decode(encode_board(BOARD))
    plain["news"] = 1
    plain["instances"]["w1"].append("more")
    assert decode_board(msgspec.msgpack.encode(plain)) == BOARD


@given(st.binary(max_size=80))
def test_garbage_raises_wire_error_and_nothing_else(packed: bytes) -> None:
    with pytest.raises(WireError):
        decode_board(packed)
