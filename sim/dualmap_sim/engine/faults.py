"""What can be made to go wrong with an engine while it runs."""

import random

import msgspec

from dualmap_sim.engine.errors import ApiError, bad_request, internal_error, validation_error


class FaultSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The faults in force; the defaults are a healthy engine.

    `latency_ms` is wall time added before a request is looked at. `times` limits how many requests the
    faults other than `slow_down`, `latency_ms` and `unhealthy` still hit; null is no limit. `hang` accepts
    and never answers. `garbage` answers with text that is not the prompt's. `die_after_tokens` cuts the
    connection once that many tokens were produced. `slow_down` multiplies the time of every step from now on.
    """

    latency_ms: float = 0.0
    error_rate: float = 0.0
    hang: bool = False
    garbage: bool = False
    die_after_tokens: int | None = None
    slow_down: float = 1.0
    unhealthy: bool = False
    times: int | None = None

    def check(self) -> None:
        """Raise ApiError if a value is out of range."""
        if self.latency_ms < 0 or not 0 <= self.error_rate <= 1 or self.slow_down <= 0:
            raise bad_request("latency_ms must be >= 0, error_rate within 0 to 1, slow_down above 0")
        if (self.die_after_tokens is not None and self.die_after_tokens < 0) or (self.times or 0) < 0:
            raise bad_request("die_after_tokens and times must be >= 0")


class RequestFault(msgspec.Struct, frozen=True):
    """What happens to one request."""

    hang: bool = False
    garbage: bool = False
    die_after_tokens: int | None = None
    error: ApiError | None = None


_HEALTHY = RequestFault()


class Faults:
    """The faults of one engine; chance comes from a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.settings = FaultSettings()
        self._rng = random.Random(seed)

    def update(self, body: bytes) -> FaultSettings:
        """Set the fields that a JSON object names and keep the others; `{"reset": true}` heals first."""
        try:
            changes = msgspec.json.decode(body or b"{}", type=dict[str, msgspec.Raw])
            reset = msgspec.json.decode(changes.pop("reset", msgspec.Raw(b"false")), type=bool)
            named = {name: msgspec.json.decode(raw) for name, raw in changes.items()}
            base = {} if reset else msgspec.to_builtins(self.settings)
            settings = msgspec.convert({**base, **named}, FaultSettings)
        except msgspec.DecodeError as error:
            raise validation_error(str(error)) from error
        settings.check()
        self.settings = settings
        return settings

    def for_request(self) -> RequestFault:
        """Draw what happens to the next request."""
        settings = self.settings
        fails = settings.error_rate > 0 and self._rng.random() < settings.error_rate
        hits = fails or settings.hang or settings.garbage or settings.die_after_tokens is not None
        if not hits or settings.times == 0:
            return _HEALTHY
        if settings.times is not None:
            self.settings = msgspec.structs.replace(settings, times=settings.times - 1)
        error = internal_error("The engine failed, as it was told to.") if fails else None
        return RequestFault(settings.hang, settings.garbage, settings.die_after_tokens, error)
