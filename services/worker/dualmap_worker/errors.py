"""Errors of the worker: what can go wrong between it and its engine."""


class EngineError(Exception):
    """The engine did not answer as an HTTP server does."""


class EngineLostError(EngineError):
    """The engine cannot be reached, or ended the connection."""


class EngineTimeoutError(EngineError):
    """The engine sent nothing for longer than the worker waits."""


class BadAnswerError(EngineError):
    """The engine sent something that is not HTTP."""
