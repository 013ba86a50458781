"""Follows the engine: whether it is there, how loaded it is, what it serves and what it lacks."""

import asyncio
import logging
import time

from dualmap.admission import Admission
from dualmap.job import Job
from dualmap.types import EngineLoad
from dualmap_service.lifecycle import ServiceFailedError, wait_for
from dualmap_worker.cache_watch import CacheWatch
from dualmap_worker.capabilities import EVENTS_HEARD, PROMPT_DETAILS, Lack, ToldDetails, known_lacks
from dualmap_worker.engine import Engine, EngineInfo
from dualmap_worker.engine_launch import EngineLaunch
from dualmap_worker.errors import EngineError, EngineLostError
from dualmap_worker.presence import Presence
from dualmap_worker.relay import Requests
from dualmap_worker.settings import WorkerSettings
from dualmap_worker.supervisor import supervisor_for
from dualmap_worker.usage import Usage

log = logging.getLogger(__name__)

POLL_S = 0.5
NAMES_POLL_S = 2.0
_MISSES = 3


class EngineWatch:
    """What the worker knows of its engine, and what follows when that changes."""

    def __init__(
        self,
        settings: WorkerSettings,
        launch: EngineLaunch,
        engine: Engine,
        admission: Admission,
        requests: Requests,
        cache: CacheWatch,
        presence: Presence,
        stop: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._launch = launch
        self._engine = engine
        self._admission = admission
        self._requests = requests
        self._cache = cache
        self._presence = presence
        self._stop = stop
        self.supervisor = supervisor_for(launch, settings, stop)
        self.version = ""
        self.lacks: list[Lack] = []
        self._details = ToldDetails()
        self._misses = 0
        self._away = False
        self._announcing = asyncio.Lock()
        requests.counted = self._counted

    # Meeting it

    async def meet(self) -> tuple[EngineInfo, int] | None:
        """Wait until it answers; returns what it is and the tokens its cache holds, None when told to stop."""
        deadline = time.monotonic() + self._settings.engine_wait_s
        while True:
            life = self.supervisor.life
            if await self._engine.healthy():
                try:
                    info = await self._engine.info()
                    self._admission.load, kv_tokens = await self._engine.load()
                except EngineError as exc:
                    if not self._launch.supervised:
                        raise ServiceFailedError(
                            f"the engine at {self._launch.url} cannot be used: {exc}"
                        ) from exc
                else:
                    if self.supervisor.heard(life):
                        self._away = self._requests.engine_away = False
                        await self._look_closer()
                        return info, kv_tokens
            if not self._launch.supervised and time.monotonic() > deadline:
                raise ServiceFailedError(f"no engine answers at {self._launch.url}")
            if await wait_for(self._stop, 0.2):
                return None

    async def _look_closer(self) -> None:
        """What it can do, once per start of it; said where something is missing."""
        self.version = await self._engine.version()
        self.lacks = known_lacks(self._launch, self.version)
        if self._details.told is False and PROMPT_DETAILS not in self.lacks:
            self.lacks.append(PROMPT_DETAILS)
        log.info("engine.is", extra={"version": self.version or "unknown", "url": self._launch.url})
        for lack in self.lacks:
            _warn(lack)

    def _counted(self, job: Job, usage: Usage) -> None:
        """An answer went by: does the engine tell what was cached?"""
        if usage.output_tokens and self._details.answered(job.cached_tokens, usage.cached_tokens):
            self.lacks = [lack for lack in self.lacks if lack is not PROMPT_DETAILS]
            if not self._details.told:
                self.lacks.append(PROMPT_DETAILS)
                _warn(PROMPT_DETAILS)

    # Following it

    async def poll(self) -> None:
        """Follow the engine's load; one that stays away offers no keys, one that came back has an empty cache."""
        life = self.supervisor.life
        try:
            load, kv_tokens = await self._engine.load()
            if self._launch.supervised and not await self._engine.healthy():
                raise EngineLostError("/health does not answer, or says that it is not well")
            if not self.supervisor.heard(life):
                raise EngineLostError("it ended while it was asked")
        except EngineError as exc:
            self._admission.load = EngineLoad()
            self._misses += 1
            if self._away:
                await self._announce()
            elif self._misses >= _MISSES:
                await self.lost(str(exc))
        else:
            self._admission.load = load
            self._misses = 0
            self._requests.engine_away = False
            away, self._away = self._away, False
            if away:
                log.info("engine.back")
                self._cache.engine_back()
                self._cache.resized(kv_tokens)
                await self._announce(kv_tokens)
                await self._look_closer()
        self._follow_events()
        # Whatever was held may start now: also into an engine that is gone, since that frees it for another.
        if self._admission.queue:
            self._requests.pump()

    def _follow_events(self) -> None:
        """Do KV events still come?"""
        if self._cache.silent == (EVENTS_HEARD in self.lacks):
            return
        if self._cache.silent:
            self.lacks.append(EVENTS_HEARD)
            _warn(EVENTS_HEARD)
        else:
            self.lacks = [lack for lack in self.lacks if lack is not EVENTS_HEARD]
            log.info("engine.has", extra={"has": EVENTS_HEARD.name})

    async def poll_names(self) -> None:
        """Follow what the engine serves: adapters come and go while it runs."""
        try:
            info = await self._engine.info()
        except EngineError:
            return  # whether it is there at all is not asked here
        names = {"adapters": info.adapters, "aliases": self.aliases(info)}
        if await self._presence.change(**names):
            log.info("engine.serves", extra=names)

    def aliases(self, info: EngineInfo) -> tuple[str, ...]:
        """The names of the model besides the one that it is registered by."""
        model = self._settings.model or info.model
        return tuple(name for name in (info.model, *info.aliases) if name != model)

    async def lost(self, why: str) -> None:
        """It has ended, or does not answer: what no client has seen a byte of starts elsewhere."""
        if self._away:
            return
        self._away = True
        self._admission.load = EngineLoad()
        handed_back = self._requests.lose_engine()
        log.warning("engine.away", extra={"error": why, "handed_back": handed_back})
        await self._announce()

    async def _announce(self, kv_tokens: int = 0) -> None:
        """Say whether it is there, as it is when earlier words of it have been said."""
        async with self._announcing:
            if self._away:
                await self._presence.leave("draining" if self._requests.draining else "unready")
            elif not self._requests.draining:
                known = kv_tokens and not self._settings.kv_tokens
                await self._presence.come_back(**({"kv_tokens": kv_tokens} if known else {}))


def _warn(lack: Lack) -> None:
    log.warning("engine.lacks", extra={"lacks": lack.name, "follows": lack.follows, "do": lack.do})
