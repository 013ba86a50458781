"""The board: what the leading rebalancer has heard last, put into Redis for people to look at. No decision reads it.

One value with a short life, so that what nobody keeps up vanishes instead of looking fresh. Numbers and names only.
"""

import msgspec

from dualmap_wire.errors import WireError

BOARD_MS = 5000
"""How long the board outlives its last writing."""
MAX_MOVES = 32
"""The last moves that it tells of."""


class Posted(msgspec.Struct, frozen=True, array_like=True):
    """What an instance's last report says of its queue and its engine; a later release adds fields at the end."""

    age_s: float
    """Of the report, when the board was written."""
    queued: int
    busy_s: float
    """Prefill seconds left in the engine."""
    oldest_s: float = 0.0
    """How long the oldest queued request has waited."""
    late: int = 0
    """Of the queued requests that are reported one by one, those that cannot meet their objective any more."""
    engine_running: int = 0
    engine_waiting: int = 0
    kv_use: float = 0.0
    held: bool = False
    owned_chunks: int = 0
    preemptions: int = 0
    fit_samples: int = 0
    fit_residual: float = 0.0


class PostedMove(msgspec.Struct, frozen=True, array_like=True):
    """What became of one move that was asked for."""

    request_id: str
    source: str
    target: str
    benefit_s: float
    outcome: str
    age_s: float
    """Since its worker has answered, when the board was written."""


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The whole pool, by whom."""

    rebalancer: str
    hot: tuple[str, ...]
    """Instances that the last pass found hot."""
    instances: dict[str, Posted]
    moves: tuple[PostedMove, ...] = ()
    """The newest first."""


_decoder = msgspec.msgpack.Decoder(Board)
_encoder = msgspec.msgpack.Encoder()


def encode_board(board: Board) -> bytes:
    """The board as Redis holds it."""
    return _encoder.encode(board)


def decode_board(packed: bytes) -> Board:
    """The board from Redis; WireError for anything else."""
    try:
        return _decoder.decode(packed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WireError(f"not a board of this release: {exc}") from exc
