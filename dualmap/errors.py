"""Errors of the core: each one means that the caller passed a value that has no meaning."""


class CoreError(ValueError):
    """A value that the core cannot work with."""


class EmptyPoolError(CoreError):
    """A decision was asked for while no instance may take new requests."""


class UnknownPolicyError(CoreError):
    """A policy name that is not in `dualmap.choose.POLICIES`."""


class UnknownOrderError(CoreError):
    """An order's name that is not in `dualmap.queue_order.ORDERS`."""
