"""Errors of the shared room."""


class SettingsError(ValueError):
    """A setting that is unknown or has no meaning; the message names it and where it came from."""


class StoreError(Exception):
    """Redis answered with an error."""


class StoreUnavailableError(StoreError):
    """Redis did not answer in time, or there is no connection."""
