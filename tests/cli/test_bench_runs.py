"""Runs of `make bench-peers`: which are done again, and which are kept for the next time."""

from pathlib import Path

import msgspec
import pytest

from bench.peers.arena import DUALMAP
from bench.peers.outcome import Outcome
from bench.peers.peer_process import ArenaError
from bench.peers.run import Trial
from bench.peers.schedule import Runs

from .test_bench_peers import outcome

TRIAL = Trial(DUALMAP, "conversation", 4.0, 10)
FINE, DOUBTFUL = outcome(DUALMAP, 4.0, 0.9), outcome(DUALMAP, 4.0, 0.8, lag_s=1.0)


@pytest.mark.parametrize(
    ("comes", "found", "is_kept"),
    [
        ([FINE], FINE, True),
        ([DOUBTFUL, FINE], FINE, True),
        ([ArenaError("port taken"), FINE], FINE, True),
        ([DOUBTFUL, ArenaError("port taken")], DOUBTFUL, False),
        ([ArenaError("port taken"), ArenaError("port taken")], None, False),
    ],
)
async def test_what_failed_or_is_doubtful_is_done_once_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    comes: list[Outcome | ArenaError],
    found: Outcome | None,
    is_kept: bool,
) -> None:
    left = list(comes)

    async def run_apart(trial: Trial) -> Outcome:
        one = left.pop(0)
        if isinstance(one, ArenaError):
            raise one
        return one

    monkeypatch.setattr("bench.peers.schedule.run_apart", run_apart)
    said: list[str] = []

    def runs(tries: int) -> Runs:
        return Runs(tmp_path / "kept/runs.jsonl", 1, said.append, tries, doubtful=False)

    assert await runs(2).run(TRIAL) == found
    assert (left, len(said)) == ([], len(comes))
    # The next bench takes what is sound, and runs nothing that is not another trial.
    again = runs(0)
    assert again.kept(TRIAL) == await again.run(TRIAL) == (found if is_kept else None)
    assert await again.run(msgspec.structs.replace(TRIAL, seed=2)) is None
