"""Errors of the worker: what can go wrong between it and its engine."""

from typing import ClassVar


class EngineError(Exception):
    """The engine did not answer as an HTTP server does; the message is for operators and may hold its address."""

    public: ClassVar[str] = "the engine failed"
    """What a client is told."""


class EngineLostError(EngineError):
    """The engine cannot be reached, or ended the connection."""

    public = "the engine was lost"


class EngineDiedError(EngineLostError):
    """The engine was lost with a request that it had taken."""


class EngineTimeoutError(EngineError):
    """The engine sent nothing for longer than the worker waits."""

    public = "the engine did not answer in time"


class BadAnswerError(EngineError):
    """The engine sent something that is not HTTP."""

    public = "the engine broke HTTP"


class KvEventError(Exception):
    """An engine's KV cache event cannot be read."""
