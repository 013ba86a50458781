"""Images, audio and files inside a prompt: each stands for a fixed number of tokens and hashes by its content.

As base64 text a picture of a megabyte would pass for 250,000 tokens, fifty chunks would tell it from the next one,
and the conversation behind it would lie beyond the chunks that are hashed.
"""

from collections.abc import Iterator

import msgspec
import xxhash

MEDIA_TOKENS = 1000
"""What an image or a sound is taken for: between a small picture and a page at full resolution."""
MEDIA_BYTES = 4 * MEDIA_TOKENS
"""Length of its place in the canonical prompt, so that it fills as many chunks as text of so many tokens."""

_NEEDLE_BYTES = 64
"""Looking for all of a medium at once would take milliseconds to prepare."""
_MAX_NESTING = 3
"""Messages hold parts, a part may be a tool's result, and that holds parts again."""
_MEDIA = frozenset(
    f'"{kind}"'.encode()
    for kind in (
        "image_url", "input_image", "image", "image_embeds",
        "input_audio", "audio_url", "audio", "video_url", "video",
    )
)  # fmt: skip
_TEXTS = frozenset((b'"text"', b'"input_text"', b'"output_text"', b'"message"', b""))
_FILES = frozenset((b'"file"', b'"input_file"', b'"document"'))
"""Media when their content is in them; a reference or a text is what it looks like."""


class _Part(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw(b"")
    content: msgspec.Raw = msgspec.Raw(b"")
    image_url: msgspec.Raw = msgspec.Raw(b"")
    audio_url: msgspec.Raw = msgspec.Raw(b"")
    video_url: msgspec.Raw = msgspec.Raw(b"")
    input_audio: msgspec.Raw = msgspec.Raw(b"")

    @property
    def may_hold_media(self) -> bool:
        """Whether it is worth a closer look."""
        return (
            bytes(self.type) not in _TEXTS
            or bool(self.image_url or self.audio_url or self.video_url or self.input_audio)
            or self.holds_parts
        )

    @property
    def holds_parts(self) -> bool:
        """Whether it has a list as its content."""
        return bytes(memoryview(self.content)[:1]) == b"["

    def is_media(self, raw: msgspec.Raw) -> bool:
        """By its type, or where that is left out by what it has."""
        kind = bytes(self.type)
        if kind in _FILES:
            return b"base64" in bytes(raw)
        return kind in _MEDIA or bool(self.image_url or self.audio_url or self.video_url or self.input_audio)


_items = msgspec.json.Decoder(list[msgspec.Raw])
_parts = msgspec.json.Decoder(list[_Part])


def without_media(content: msgspec.Raw) -> tuple[bytes | memoryview, int]:
    """A list of messages or parts with a stand-in for each medium, all else as it is; and how many there were."""
    media = list(_media(content, _MAX_NESTING))
    if not media:
        return memoryview(content), 0
    raw = bytes(content)
    pieces: list[bytes] = []
    at = 0
    for medium in media:
        found = bytes(medium)
        start = raw.index(found[:_NEEDLE_BYTES], at)
        while not raw.startswith(found, start):
            start = raw.index(found[:_NEEDLE_BYTES], start + 1)
        pieces += (raw[at:start], _stand_in(found))
        at = start + len(found)
    return b"".join((*pieces, raw[at:])), len(media)


def _media(content: msgspec.Raw, nesting: int) -> Iterator[msgspec.Raw]:
    """The media of a list in order."""
    if bytes(memoryview(content)[:1]) != b"[":
        return
    try:
        parts = _parts.decode(content)
    except msgspec.ValidationError:
        # A list of token ids or of texts.
        return
    if not any(part.may_hold_media for part in parts):
        return
    for item, part in zip(_items.decode(content), parts, strict=True):
        if part.is_media(item):
            yield item
        elif nesting > 1 and part.holds_parts:
            yield from _media(part.content, nesting - 1)


def _stand_in(medium: bytes) -> bytes:
    digest = xxhash.xxh3_128_hexdigest(medium).encode()
    return digest * (MEDIA_BYTES // len(digest))
