"""What the simulated model says: a pure function of the prompt, so that anyone can check any answer.

Tokens are 4 bytes of UTF-8; a token's id is those bytes as a little-endian number, so ids and text convert
without a table. Token i of the answer is three characters and a space drawn from a hash of (prompt, i); the
first one starts with "=". A prompt that ends in the first tokens of its own answer continues that answer:
expected(prompt + answer[:k]) == answer[k:]. So a stream that was cut can be resumed elsewhere, whether the
text so far comes back as a chat's last message, as part of a prompt string or as token ids.
"""

import re
from array import array
from collections.abc import Sequence
from typing import Protocol

import xxhash

BYTES_PER_TOKEN = 4
EOS_TOKEN_ID = 2
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_PAIRS = [(a + b).encode() for a in _LETTERS for b in _LETTERS]
_ENDS = [(a + " ").encode() for a in _LETTERS]
_FIRSTS = [("=" + a).encode() for a in _LETTERS]
_SO_FAR = re.compile(rb"=[a-z0-9]{2} (?:[a-z0-9]{3} )*[a-z0-9]{0,3}\Z")
_NATURAL_TOKENS = (32, 128)


class Output(Protocol):
    """The tokens that one request produces, by index from its first new token."""

    def text(self, start: int, stop: int) -> str:
        """The text of tokens [start, stop)."""

    def token_bytes(self, start: int, stop: int) -> bytes:
        """Tokens [start, stop) as 4 bytes each."""


def encode(text: bytes) -> bytes:
    """Tokenize: pad the text with NULs to whole tokens."""
    return text + b"\0" * (-len(text) % BYTES_PER_TOKEN)


def token_ids(tokens: bytes) -> list[int]:
    """The ids of a tokenized text."""
    return array("I", tokens).tolist()


def from_token_ids(ids: Sequence[int]) -> bytes:
    """The tokenized text of these ids; OverflowError or TypeError if they are not 32-bit numbers."""
    return array("I", ids).tobytes()


def decode(tokens: bytes) -> str:
    """The text of a tokenized text."""
    return tokens.replace(b"\0", b"").decode(errors="replace")


def split_continuation(prompt: bytes) -> tuple[bytes, int]:
    """Cut a prompt into what was asked and the number of bytes of its own answer that follow."""
    prompt = prompt.rstrip(b"\0")
    found = _SO_FAR.search(prompt)
    if found is None:
        return prompt, 0
    base = prompt[: found.start()].rstrip(b"\0")
    so_far = prompt[found.start() :]
    answer = _tokens(xxhash.xxh3_64_intdigest(base), 0, -(-len(so_far) // BYTES_PER_TOKEN))
    return (base, len(so_far)) if answer.startswith(so_far) else (prompt, 0)


def _token(seed: int, index: int) -> bytes:
    value: int = xxhash.xxh3_64_intdigest(index.to_bytes(4, "little"), seed)
    if index == 0:
        return _FIRSTS[value % 36] + _ENDS[(value >> 20) % 36]
    return _PAIRS[value % 1296] + _ENDS[(value >> 20) % 36]


def _tokens(seed: int, start: int, stop: int) -> bytes:
    return b"".join([_token(seed, index) for index in range(start, stop)])


class Answer:
    """The answer to a prompt from where the prompt leaves off; `choice` tells the n answers apart."""

    __slots__ = ("_seed", "_skip_bytes", "_skip_tokens", "natural_tokens")

    def __init__(self, prompt: bytes, choice: int = 0) -> None:
        base, so_far_bytes = split_continuation(prompt)
        self._seed: int = xxhash.xxh3_64_intdigest(base, seed=choice)
        self._skip_tokens, self._skip_bytes = divmod(so_far_bytes, BYTES_PER_TOKEN)
        shortest, spread = _NATURAL_TOKENS
        natural_total = shortest + self._seed % spread
        self.natural_tokens = max(0, natural_total - self._skip_tokens)
        """How many tokens are left when nobody sets a limit."""

    def text(self, start: int, stop: int) -> str:
        """The text of new tokens [start, stop); a token cut by the prompt's end gives its rest."""
        data = _tokens(self._seed, self._skip_tokens + start, self._skip_tokens + stop)
        return (data[self._skip_bytes :] if start == 0 else data).decode()

    def token_bytes(self, start: int, stop: int) -> bytes:
        """New tokens [start, stop) as 4 bytes each."""
        return _tokens(self._seed, self._skip_tokens + start, self._skip_tokens + stop)


class FixedOutput:
    """A given text as an output: tool calls, and the answers of a broken engine."""

    __slots__ = ("_data", "num_tokens")

    def __init__(self, text: bytes) -> None:
        self._data = encode(text)
        self.num_tokens = max(1, len(self._data) // BYTES_PER_TOKEN)

    def text(self, start: int, stop: int) -> str:
        """The text of tokens [start, stop)."""
        return self._data[start * BYTES_PER_TOKEN : stop * BYTES_PER_TOKEN].rstrip(b"\0").decode()

    def token_bytes(self, start: int, stop: int) -> bytes:
        """Tokens [start, stop) as 4 bytes each."""
        return self._data[start * BYTES_PER_TOKEN : stop * BYTES_PER_TOKEN]


def expected_text(prompt: bytes, num_tokens: int | None = None, choice: int = 0) -> str:
    """The answer to a canonical prompt; without a length, the one of a request that sets no limit."""
    answer = Answer(prompt, choice)
    return answer.text(0, answer.natural_tokens if num_tokens is None else num_tokens)


def matches(prompt: bytes, answer: str, num_tokens: int | None = None, choice: int = 0) -> bool:
    """Whether an answer is right: these tokens if their number is given, else any beginning of the answer."""
    if num_tokens is not None:
        return answer == expected_text(prompt, num_tokens, choice)
    enough = len(answer.encode()) // BYTES_PER_TOKEN + 2
    return expected_text(prompt, enough, choice).startswith(answer)
