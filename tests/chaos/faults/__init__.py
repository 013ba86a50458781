"""Every fault, by the part of the system that it befalls."""

from .base import Fault
from .clients import ClientsDawdle, ClientsVanish, ClientsVanishUnanswered, ConnectionStorm
from .clocks import ClockSteps
from .engines import DiesAtOnce, DiesHalfWay, Fails, Garbles, Hangs, Late, Slow, Unhealthy
from .network import (
    LeaderFromStore,
    OneRouterFromWorker,
    Partition,
    RebalancersFromWorker,
    RouterFromStore,
    RouterFromWorkers,
    RoutersFromWorker,
    TelemetryIsDoubled,
    TelemetryIsLate,
    TelemetryIsLost,
    TelemetryIsSilent,
    TelemetryIsSwapped,
    WorkerFromStore,
)
from .processes import (
    FreezeEngine,
    FreezeLeader,
    FreezeRouter,
    FreezeWorker,
    KillEngine,
    KillLeader,
    KillRouter,
    KillWorker,
    RestartEngine,
    RestartEverything,
    RestartLeader,
    RestartRouter,
    RestartWorker,
)
from .store import (
    StoreDies,
    StoreDrags,
    StoreDrops,
    StoreForgets,
    StoreFreezes,
    StoreIsFull,
    StoreLosesFunctions,
)

INSTANCE_FAULTS: tuple[type[Fault], ...] = (
    KillWorker,
    KillEngine,
    FreezeWorker,
    FreezeEngine,
    RestartWorker,
    RestartEngine,
    DiesHalfWay,
    DiesAtOnce,
    Slow,
    Late,
    Unhealthy,
    Garbles,
    RoutersFromWorker,
    OneRouterFromWorker,
    WorkerFromStore,
)
"""Their part is a worker, or the engine beside it."""

ROUTER_FAULTS: tuple[type[Fault], ...] = (
    KillRouter,
    FreezeRouter,
    RestartRouter,
    RouterFromStore,
    RouterFromWorkers,
)

STORE_FAULTS: tuple[type[Fault], ...] = (
    StoreDies,
    StoreFreezes,
    StoreForgets,
    StoreLosesFunctions,
    StoreDrops,
    StoreIsFull,
    StoreDrags,
)

REBALANCER_FAULTS: tuple[type[Fault], ...] = (
    KillLeader,
    FreezeLeader,
    RestartLeader,
    LeaderFromStore,
    RebalancersFromWorker,
    TelemetryIsLost,
    TelemetryIsSilent,
    TelemetryIsDoubled,
    TelemetryIsLate,
    TelemetryIsSwapped,
)

# Not drawn at random: `Fails` and `Hangs`, which users may see, and `RestartEverything`, which is long.
CLIENT_FAULTS: tuple[type[Fault], ...] = (
    ClientsVanish,
    ClientsVanishUnanswered,
    ClientsDawdle,
    ConnectionStorm,
)

__all__ = [
    "CLIENT_FAULTS",
    "INSTANCE_FAULTS",
    "REBALANCER_FAULTS",
    "ROUTER_FAULTS",
    "STORE_FAULTS",
    "ClientsDawdle",
    "ClientsVanish",
    "ClientsVanishUnanswered",
    "ClockSteps",
    "ConnectionStorm",
    "DiesAtOnce",
    "DiesHalfWay",
    "Fails",
    "Fault",
    "FreezeEngine",
    "FreezeLeader",
    "FreezeRouter",
    "FreezeWorker",
    "Garbles",
    "Hangs",
    "KillEngine",
    "KillLeader",
    "KillRouter",
    "KillWorker",
    "Late",
    "LeaderFromStore",
    "OneRouterFromWorker",
    "Partition",
    "RebalancersFromWorker",
    "RestartEngine",
    "RestartEverything",
    "RestartLeader",
    "RestartRouter",
    "RestartWorker",
    "RouterFromStore",
    "RouterFromWorkers",
    "RoutersFromWorker",
    "Slow",
    "StoreDies",
    "StoreDrags",
    "StoreDrops",
    "StoreForgets",
    "StoreFreezes",
    "StoreIsFull",
    "StoreLosesFunctions",
    "TelemetryIsDoubled",
    "TelemetryIsLate",
    "TelemetryIsLost",
    "TelemetryIsSilent",
    "TelemetryIsSwapped",
    "Unhealthy",
    "WorkerFromStore",
]
