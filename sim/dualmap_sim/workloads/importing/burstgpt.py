"""BurstGPT's CSV and its like: when each request came and how long it was, not what it said.

Without its text nothing is known to be shared. With a session or conversation column the prompt of each turn
extends the one before it: "Request tokens" is then taken for the whole prompt, as it is billed, and a turn
that is not longer than the last one begins the session's prompt afresh.
"""

import csv
from collections.abc import Mapping

from dualmap_sim.workloads.errors import LineError
from dualmap_sim.workloads.importing.salted import Salted
from dualmap_sim.workloads.importing.stamps import epoch_ms
from dualmap_sim.workloads.trace_line import MAX_TOKENS, TraceLine, num_blocks

_STAMP, _INPUT, _OUTPUT = "timestamp", "request tokens", "response tokens"
_SESSIONS = ("session id", "session", "conversation id", "conversation")


class BurstGpt:
    """Reads the lines of a CSV file, the first of which names its columns."""

    def __init__(self, salted: Salted, keep_names: bool, models: tuple[str, ...]) -> None:
        self._salted = salted
        self._keep_names = keep_names
        self._wanted = frozenset(models)
        self._columns: Mapping[str, int] = {}
        self._turns: dict[str, tuple[str, int]] = {}
        self._rows = 0

    def parse(self, raw: bytes) -> TraceLine | None:
        """One row as a request; None for the header and for another model's."""
        try:
            row = next(csv.reader([raw.decode("utf-8-sig").strip()], strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise LineError(str(error)) from error
        if not self._columns:
            self._columns = _columns(row)
            return None
        self._rows += 1
        if self._wanted and self._cell(row, "model") not in self._wanted:
            return None
        tokens = self._number(row, _INPUT, 1)
        session = next(filter(None, (self._cell(row, name) for name in _SESSIONS)), None)
        return TraceLine(
            timestamp=epoch_ms(self._cell(row, _STAMP)),
            input_length=tokens,
            # A request that failed has an answer of nothing; its prefill was asked for all the same.
            output_length=max(1, self._number(row, _OUTPUT, 0)),
            hash_ids=self._block_ids(session, tokens),
            session=session if session is None or self._keep_names else self._salted.name(session),
        )

    def _block_ids(self, session: str | None, tokens: int) -> list[int]:
        prefix = f"row {self._rows}"
        if session is not None:
            prefix, before = self._turns.get(session, (prefix, 0))
            if tokens <= before:
                prefix = f"row {self._rows}"
            self._turns[session] = (prefix, tokens)
        return [self._salted.block(f"{prefix} {index}".encode()) for index in range(num_blocks(tokens))]

    def _cell(self, row: list[str], name: str) -> str:
        place = self._columns.get(name)
        return "" if place is None or place >= len(row) else row[place].strip()

    def _number(self, row: list[str], name: str, least: int) -> int:
        text = self._cell(row, name)
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= MAX_TOKENS:
            raise LineError(f"{name} must be a number from {least} to {MAX_TOKENS}, not {text[:40]!r}")
        return int(value)


def _columns(header: list[str]) -> dict[str, int]:
    columns = {" ".join(name.lower().replace("_", " ").split()): place for place, name in enumerate(header)}
    missing = [name for name in (_STAMP, _INPUT, _OUTPUT) if name not in columns]
    if missing:
        raise LineError(f"no column {', '.join(map(repr, missing))} in the header")
    return columns
