"""HTTP/2's frames (RFC 9113), as far as a session needs them: their numbers, and their bytes read and written.

The numbers are plain: an IntEnum's members are looked up through its metaclass, several times a frame.
"""

from collections.abc import Iterator, Mapping
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES = 16384
"""What this end takes per frame: HTTP/2's default."""
DEFAULT_WINDOW_BYTES = 65535
MAX_WINDOW_BYTES = 2**31 - 1
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 2, 4, 5

read_head = Struct(">BHBBI").unpack_from
"""Of a frame: length (its first byte, and the other two), kind, flags, stream."""


class BrokenError(Exception):
    """The other end broke a rule, or ended the call."""


def frame(kind: int, flags: int, stream: int, *payload: bytes | memoryview) -> bytes:
    """A frame, its payload put together of parts."""
    size = len(payload[0]) if len(payload) == 1 else sum(map(len, payload))
    head = (size << 48) | (kind << 40) | (flags << 32) | stream
    return b"".join((head.to_bytes(9, "big"), *payload))


def unpadded(flags: int, payload: bytes) -> bytes:
    """What a frame holds, without its padding."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise BrokenError("more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def settings(values: Mapping[int, int]) -> bytes:
    """What a SETTINGS frame says."""
    return b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values.items())


def settings_in(payload: bytes) -> Iterator[tuple[int, int]]:
    """The settings of a SETTINGS frame, of which those that matter here are checked."""
    if len(payload) % 6:
        raise BrokenError("settings of an odd size")
    for start in range(0, len(payload), 6):
        key = int.from_bytes(payload[start : start + 2], "big")
        value = int.from_bytes(payload[start + 2 : start + 6], "big")
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW_BYTES:
            raise BrokenError("a window larger than there is")
        if key == MAX_FRAME_SIZE and not 16384 <= value < 1 << 24:
            raise BrokenError("a frame size that is not allowed")
        yield key, value


def message_bytes(prefix: bytes) -> int:
    """The size of the gRPC message that these five bytes announce."""
    if prefix[0] != 0:
        raise BrokenError("a compressed message that nobody asked for")
    size = int.from_bytes(prefix[1:5], "big")
    if size > MAX_MESSAGE_BYTES:
        raise BrokenError("a message that is too large")
    return size
