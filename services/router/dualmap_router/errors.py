"""What a client is told when a request cannot be served. HTTP status lives here and in `api` only."""

from collections.abc import Sequence

import msgspec


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`headers` are those of the answer besides what every error has."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers

    def body(self) -> bytes:
        """The JSON body."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


class ClientGoneError(Exception):
    """The client closed its connection: nobody is left to answer."""


def bad_request(message: str, param: str | None = None) -> ApiError:
    """400: the request has no meaning."""
    return ApiError(400, message, param=param)


def not_found(path: str) -> ApiError:
    """404: no such path."""
    return ApiError(404, f"there is no {path} here", code="not_found")


def overloaded(message: str, retry_after_s: float = 1.0) -> ApiError:
    """429: there is too much of it now."""
    return ApiError(429, message, "rate_limit_error", "overloaded", retry_after_s=retry_after_s)


def unavailable(message: str, retry_after_s: float = 1.0) -> ApiError:
    """503: nothing can serve it now."""
    return ApiError(503, message, "service_unavailable", "no_instance", retry_after_s=retry_after_s)
