"""Deterministic text of a chosen number of tokens.

Every unit is a common three-letter word and a space: four bytes, and close to one token for real BPE
tokenizers too. Text comes in blocks of 512 tokens (2,048 bytes): eight words that name the block, which
make it distinct, then a slice of one fixed text, which makes it cheap.
"""

import functools
import hashlib
from typing import NamedTuple

import xxhash

BYTES_PER_TOKEN = 4
BLOCK_TOKENS = 512

_NAME_WORDS = 8
_FIXED_WORDS = 65_536
_WORDS = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now "
    "old see two way who boy did its let put say she too use dad mom act add age ago aid aim air art ask "
    "bad bag bar bat bay bed bee bet big bit bow box bug bus buy cab cap car cat cow cry cup cut den die "
    "dig dip dog dot dry due ear eat egg ego end era eye fan far fat fed fee few fig fit fix fly fog fox "
    "fun fur gap gas gem gun guy gym hat hay hen hid hit hop hot hub hug hut ice ill ink inn ion jam jar "
    "jaw jet job joy key kid kin kit lab lad lap law lay leg lid lie lip log lot low mad map mat mix mob "
    "mud mug net nod nor nut oak odd off oil own pad pan pat pay pea pen pet pie pig pin pit pop pot pub "
    "ran rat raw red rib rid rim rip rob rod row rub rug run sad sat saw sea set sew shy sin sip sir sit "
    "six sky son soy spy sum sun tab tag tan tap tax tea ten tie tin tip toe ton top toy try tub van vet "
    "via war wax web wet why win wit yes yet zip zoo add arm ash awe axe ban bin bid bun cod cop cub dam "
    "dew dim dye elm fin hip hoe hum ivy jog lob mop nap oar owl paw ply pro ram ray rye sag sap ski sly"
)


class Span(NamedTuple):
    """A stretch of prompt text: equal keys give equal text, cut to `tokens`."""

    key: str
    tokens: int

    def text(self) -> str:
        """The text itself, `tokens` * 4 bytes of ASCII."""
        blocks = (block_text(self.key, index) for index in range(-(-self.tokens // BLOCK_TOKENS)))
        return "".join(blocks)[: self.tokens * BYTES_PER_TOKEN]


def block_text(key: str, index: int) -> str:
    """Block `index` of the text that `key` names: 2,048 bytes."""
    digest = xxhash.xxh3_128_digest(f"{key}/{index}".encode())
    name = "".join([_units()[byte] for byte in digest[:_NAME_WORDS]])
    body_words = BLOCK_TOKENS - _NAME_WORDS
    start = int.from_bytes(digest[_NAME_WORDS:], "big") % (_FIXED_WORDS - body_words)
    return name + _fixed_text()[start * BYTES_PER_TOKEN : (start + body_words) * BYTES_PER_TOKEN]


@functools.cache
def _units() -> tuple[str, ...]:
    # 256 distinct units, so that one hash byte picks one word.
    return tuple(f"{word} " for word in dict.fromkeys(_WORDS.split()))[:256]


@functools.cache
def _fixed_text() -> str:
    units = _units()
    return "".join([units[byte] for byte in hashlib.shake_128(b"dualmap workload").digest(_FIXED_WORDS)])
