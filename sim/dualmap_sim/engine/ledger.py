"""Who was answered how often: the engine's own books, for tests that count."""

import msgspec

_MAX_REQUESTS = 50_000


class RequestRecord(msgspec.Struct):
    """How often one request id was started, answered in full, given up, or refused."""

    started: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0


class Ledger:
    """The newest 50,000 request ids, and the totals of all."""

    def __init__(self) -> None:
        self.requests: dict[str, RequestRecord] = {}
        self.totals = RequestRecord()
        self.open = 0
        self.peak_open = 0

    def started(self, request_id: str) -> None:
        """A request was handed to the model."""
        self._record(request_id).started += 1
        self.totals.started += 1
        self.open += 1
        self.peak_open = max(self.peak_open, self.open)

    def finished(self, request_id: str) -> None:
        """A started request was answered to its end."""
        self._record(request_id).finished += 1
        self.totals.finished += 1
        self.open -= 1

    def aborted(self, request_id: str) -> None:
        """A started request ended before its answer did."""
        self._record(request_id).aborted += 1
        self.totals.aborted += 1
        self.open -= 1

    def failed(self, request_id: str) -> None:
        """A request was answered with an error and never started."""
        self._record(request_id).failed += 1
        self.totals.failed += 1

    def _record(self, request_id: str) -> RequestRecord:
        record = self.requests.get(request_id)
        if record is None:
            if len(self.requests) >= _MAX_REQUESTS:
                del self.requests[next(iter(self.requests))]
            record = self.requests[request_id] = RequestRecord()
        return record
