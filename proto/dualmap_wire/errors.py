"""Errors of the wire: a peer said something that this release does not understand."""


class WireError(ValueError):
    """A message, a reply or a key that cannot be read."""
