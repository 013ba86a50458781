"""What comes from outside when it is not what it should be: shared by every fuzz test."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

TEXTS = st.text(max_size=12)
# Every kind of number that a parser may trip over, beside those that hypothesis thinks of.
INTS = st.integers() | st.sampled_from([0, -1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30])
SCALARS = st.none() | st.booleans() | INTS | st.floats() | TEXTS | st.binary(max_size=12)


def values(scalars: st.SearchStrategy[Any], keys: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[Any]:
    """Lists and maps of these scalars, a few levels deep."""
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=10,
    )


def json_values(keys: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[Any]:
    """Whatever JSON can say."""
    return values(st.none() | st.booleans() | INTS | st.floats() | TEXTS, keys)


@st.composite
def json_texts(draw: st.DrawFn, value: st.SearchStrategy[Any]) -> bytes:
    """JSON as other writers have it: escaped or not, lone surrogates, repeated keys, nested too deeply, damaged."""
    text = json.dumps(draw(value), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    kind = draw(st.sampled_from(["plain", "plain", "surrogate", "twice", "deep", "damaged"]))
    if kind == "surrogate":
        return text.replace(b'"', rb'"\ud800', draw(st.integers(0, 3)))
    if kind == "twice" and text.startswith(b"{") and len(text) > 2:
        return text[:-1] + b"," + text[1:]
    if kind == "deep":
        # Deeper than decoders recurse, in place of the last value or behind all.
        depth = draw(st.sampled_from([3, 5000]))
        deep = b"[" * depth + b"]" * draw(st.sampled_from([depth, 0]))
        return text[:-1] + b',"x":' + deep + b"}" if text.startswith(b"{") and len(text) > 2 else deep
    return draw(damaged(text)) if kind == "damaged" else text


@st.composite
def damaged(draw: st.DrawFn, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """The bytes with some of them changed, left out, repeated or put in."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 8)))
        put = st.just(b"") | st.binary(max_size=4) | st.just(data[at:to] * 2)
        data = data[:at] + draw(put | st.sampled_from(words) if words else put) + data[to:]
    return data


@st.composite
def cuts(draw: st.DrawFn, data: bytes, most: int = 12) -> list[bytes]:
    """The bytes in pieces."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=most).map(sorted))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]
