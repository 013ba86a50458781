"""What a request's head must be, once llhttp has found it to be one: nothing that two servers read differently."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dualmap_router.errors import ApiError, bad_request

if TYPE_CHECKING:
    from dualmap_router.http_server import HttpLimits


def check_head(
    method: bytes, version: str, headers: Sequence[tuple[str, str]], num_bytes: int, limits: "HttpLimits"
) -> bool:
    """ApiError for a head that asks for nothing; returns whether its client waits to be told to send the body."""
    if version not in ("1.0", "1.1"):
        raise bad_request("the request is not valid HTTP: it needs version 1.0 or 1.1")
    if method in (b"CONNECT", b"TRACE"):
        raise ApiError(405, "this is no proxy", code="method_not_allowed")
    if len(headers) > limits.max_headers or num_bytes > limits.max_header_bytes:
        raise head_too_large(limits)
    hosts, expects = 0, False
    for name, value in headers:
        if name == "host":
            hosts += 1
        elif name == "expect":
            expects = value.lower() == "100-continue"
        # Whoever stands before us may take any other for something else, and engines get no such header.
        elif name == "transfer-encoding" and (value.strip().lower() != "chunked" or version == "1.0"):
            raise bad_request("the request is not valid HTTP: its Transfer-Encoding is not just chunked")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise bad_request("the request is not valid HTTP: it needs one Host")
    return expects


def check_length(headers: Sequence[tuple[str, str]], most_bytes: int) -> None:
    """ApiError 413 for a body that says beforehand that it is too large."""
    for name, value in headers:
        if name == "content-length" and int(value) > most_bytes:
            raise body_too_large(most_bytes)


def without_upgrade(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of a client that has no other protocol in mind; what else Connection says stays."""
    kept = []
    for name, value in headers:
        if name == "connection":
            tokens = [token for token in value.split(",") if token.strip().lower() != "upgrade"]
            value = ",".join(tokens)
        if name != "upgrade" and (value or name != "connection"):
            kept.append((name, value))
    return kept


def head_too_large(limits: "HttpLimits") -> ApiError:
    """431."""
    return ApiError(
        431,
        f"the request's head has more than {limits.max_headers} headers or {limits.max_header_bytes} bytes",
        code="headers_too_large",
    )


def body_too_large(most_bytes: int) -> ApiError:
    """413."""
    return ApiError(413, f"the request body is larger than {most_bytes} bytes", code="body_too_large")
