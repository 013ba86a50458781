"""Runs side by side, kept as they come in: an interrupted bench goes on where it was."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import xxhash

from bench.peers.arena import DUALMAP
from bench.peers.capacity import SHARE, middle
from bench.peers.config import ENOUGH
from bench.peers.launch import Engine, Place
from bench.peers.outcome import Outcome
from bench.peers.peer_process import ArenaError
from bench.peers.run import Trial, run_apart
from bench.peers.settings import peer_of

_ROOT = Path(__file__).parents[2]
_CODE = (
    "dualmap",
    "proto",
    "services",
    "sim/dualmap_sim/engine",
    "sim/dualmap_sim/workloads",
    "cli/dualmap_cli/load",
)


class Kept(msgspec.Struct, frozen=True):
    """A line of the file: a trial, under which code and launch line, and what came of it."""

    code: str
    launch: str
    trial: Trial
    outcome: Outcome

    @property
    def key(self) -> str:
        """What makes it the same run again."""
        return _key(self.code, self.launch, self.trial)


class Runs:
    """Runs trials, at most `jobs` at a time; what was run by the same code is not run again."""

    def __init__(self, path: Path, jobs: int, say: Callable[[str], None], tries: int, doubtful: bool) -> None:
        """A run that failed or that the machine spoiled is done again, up to `tries` times in all.

        One that stays spoiled is shown as doubtful. So is one that was kept from before, unless `doubtful` takes it as
        it is. No tries: only what is kept.
        """
        self._path = path
        self._room = asyncio.Semaphore(jobs)
        self._say = say
        self._tries = tries
        self._code = _digest()
        self._kept: dict[str, Outcome] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                kept = msgspec.json.decode(line, type=Kept)
                if kept.outcome.doubt is None or doubtful:
                    self._kept[kept.key] = kept.outcome

    def kept(self, trial: Trial) -> Outcome | None:
        """The outcome of a trial that has been run before."""
        return self._kept.get(_key(self._code, _launch_line(trial.subject), trial))

    async def run(self, trial: Trial) -> Outcome | None:
        """The outcome of a trial; None, and a line that says why, if it cannot be had."""
        outcome = self.kept(trial)
        if outcome is not None:
            return outcome
        async with self._room:
            outcome = await self._tried(trial)
        if outcome is not None:
            kept = Kept(self._code, _launch_line(trial.subject), trial, outcome)
            self._kept[kept.key] = outcome
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(kept) + b"\n")
        return outcome

    async def _tried(self, trial: Trial) -> Outcome | None:
        outcome: Outcome | None = None
        for _ in range(self._tries):
            try:
                outcome = await run_apart(trial)
            except ArenaError as error:
                # Another run may have taken its port: that is no reason to be without it.
                self._say(f"{trial.subject} at {trial.rate_req_s:g}/s failed: {_last_line(error)}")
                continue
            self._say(_told(outcome))
            if outcome.doubt is None:
                break
        return outcome

    async def curve(
        self, at: Callable[[float], Trial], rates: Sequence[float], search: bool
    ) -> list[Outcome]:
        """A subject at rising rates until too few are in time, then once where its capacity lies."""
        found: dict[float, Outcome] = {}
        for rate in rates:
            outcome = await self.run(at(rate))
            if outcome is None:
                continue
            found[rate] = outcome
            if outcome.within_slo_share < ENOUGH:
                break
        between = middle({rate: one.within_slo_share for rate, one in found.items()}) if search else None
        if between is not None:
            outcome = await self.run(at(between))
            if outcome is not None:
                found[between] = outcome
        return [found[rate] for rate in sorted(found)]


def shares(outcomes: Sequence[Outcome]) -> Mapping[float, float]:
    """Attainment by rate."""
    return {one.rate_req_s: one.within_slo_share for one in outcomes}


def _told(outcome: Outcome) -> str:
    mark = "" if outcome.within_slo_share >= SHARE else " (under 90 %)"
    doubt = f"; DOUBT: {outcome.doubt}" if outcome.doubt else ""
    many = f", {outcome.routers} routers" if outcome.routers > 1 else ""
    many += ", some come and go" if outcome.changes else ""
    return (
        f"{outcome.subject}, {outcome.workload} at {outcome.rate_req_s:g}/s{many}: "
        f"{outcome.within_slo_share:.1%} in time{mark}{doubt}"
    )


def _last_line(error: ArenaError) -> str:
    return str(error).rstrip().rpartition("\n")[2]


def _key(code: str, launch: str, trial: Trial) -> str:
    return f"{code} {launch} {msgspec.json.encode(trial).decode()}"


def _launch_line(subject: str) -> str:
    """A peer's settings, so that another setting is another run."""
    if subject == DUALMAP or peer_of(subject).package == "nginx":
        return subject
    place = Place(0, 0, Path("/tmp"))
    return " ".join(peer_of(subject).launch(place, [Engine("url", "events", "replay")]))


def _digest() -> str:
    """The state of the code that figures depend on."""
    digest = xxhash.xxh3_64()
    for folder in _CODE:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".lua"):
                digest.update(path.read_bytes())
    return digest.hexdigest()
