"""What can go wrong in the simulated engine, with the bodies that vLLM would answer."""

from http import HTTPStatus
from typing import Any


class EngineConfigError(ValueError):
    """A profile or an engine's setting is out of range."""


class ApiError(Exception):
    """An answer other than 200, in vLLM's shape: {"error": {"message", "type", "param", "code"}}."""

    def __init__(self, status: int, error_type: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.status}
        return {"error": error}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A request whose values the engine refuses."""
    return ApiError(HTTPStatus.BAD_REQUEST, "BadRequestError", message, param)


def validation_error(message: str, param: str | None = None) -> ApiError:
    """A request whose body is not of the endpoint's shape."""
    text = f"1 validation error:\n  {message}"
    return ApiError(HTTPStatus.BAD_REQUEST, HTTPStatus.BAD_REQUEST.phrase, text, param)


def internal_error(message: str) -> ApiError:
    """A failure of the engine itself."""
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError", message)
