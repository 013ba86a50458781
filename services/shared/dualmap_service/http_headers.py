"""Headers that concern one connection and go no further, whichever way (RFC 9110, section 7.6.1)."""

from collections.abc import Sequence

OWN_TO_THE_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        # Whoever sends the message on says these anew.
        "content-length",
        "date",
        "server",
    )
)
"""In lower case."""


_INSIDE = ("x-dualmap-", "proxy-")
"""Between the parts of this system, and between a client and its proxy."""


def passed_on(
    headers: Sequence[tuple[str, str]], own: frozenset[str] = OWN_TO_THE_HOP
) -> list[tuple[str, str]]:
    """The (name, value) pairs that go on: end to end, ASCII, nothing of the inside. Names are in lower case.

    What the values of Connection headers name is for this hop alone, as `own` is.
    """
    connections = [value for name, value in headers if name == "connection"]
    named = {name.strip().lower() for value in connections for name in value.split(",")}
    return [
        (name, value)
        for name, value in headers
        if name not in own and name not in named and not name.startswith(_INSIDE) and value.isascii()
    ]
