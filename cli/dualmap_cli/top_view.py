"""A router's snapshot on a terminal: the same numbers as its page, in one screen."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from dualmap_cli.load.screen import seconds, share
from dualmap_router.ui.view import Instance, MoveDone, Request, Snapshot

_STALE_S = 5.0
_BARS = " ▏▎▍▌▋▊▉█"
_SPARKS = "▁▂▃▄▅▆▇█"


def top_view(snapshot: Snapshot, most_rows: int = 40) -> RenderableType:
    """Everything; lists are cut so that it fits `most_rows`."""
    num_instances = max(min(len(snapshot.instances), most_rows - 18), 4)
    left = max(most_rows - num_instances - 14, 4)
    return Group(
        _head(snapshot),
        *[Text(f"! {text}", style="bold red") for text in troubles(snapshot)],
        _instances(snapshot, num_instances),
        _requests((snapshot.waiting + snapshot.ended)[: left - 2]),
        *([_moves(snapshot.moves[: max(left // 4, 2)])] if snapshot.moves else []),
    )


def troubles(snapshot: Snapshot) -> list[str]:
    """What is wrong, in sentences."""
    found = []
    if snapshot.draining:
        found.append("this router is shutting down")
    if not snapshot.store_available:
        found.append("Redis cannot be reached: this router decides by itself, over its own work only")
    elif not snapshot.board_known:
        found.append("no rebalancer reports: queues and KV use are not known, nothing is moved")
    for instance in snapshot.instances:
        if instance.state in ("gone", "unreachable"):
            found.append(f"{instance.name} is {instance.state}")
        elif snapshot.store_available and (instance.telemetry_age_s or 0.0) > _STALE_S:
            found.append(f"{instance.name} has reported nothing for {instance.telemetry_age_s:.0f} s")
    found += [f"{gone.name} left {gone.age_s:.0f} s ago" for gone in snapshot.gone if gone.age_s < 60]
    return found


def _head(snapshot: Snapshot) -> Table:
    minutes = snapshot.minutes
    grid = Table.grid(padding=(0, 3))
    grid.add_row(
        Text("DualMap", style="bold"),
        Text(f"pool {snapshot.pool}"),
        Text(f"router {snapshot.router}"),
        Text(", ".join(snapshot.models)),
    )
    grid.add_row(
        Text(f"within {snapshot.slo_s:g} s  {share(minutes.attainment)}"),
        Text(f"TTFT p50 {seconds(minutes.p50_s)}  p90 {seconds(minutes.p90_s)}"),
        Text(f"{minutes.rate:.1f} req/s  {_spark([point.requests for point in minutes.points[-30:-1]])}"),
        Text(f"cached {share(minutes.cached_share)}  in flight {snapshot.in_flight}  moved {minutes.moves}"),
    )
    return grid


def _instances(snapshot: Snapshot, most: int) -> Table:
    numbers = ("wait", "", "queue", "running", "KV", "tokens/s", "share", "heard")
    table = Table(
        Column("instance", no_wrap=True, min_width=8),
        Column("state", no_wrap=True, min_width=6),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    busiest = sorted(snapshot.instances, key=lambda instance: -instance.wait_s)[:most]
    for instance in sorted(busiest, key=lambda instance: _natural(instance.name)):
        table.add_row(*_instance(instance, snapshot))
    if len(snapshot.instances) > most:
        table.caption = f"the {most} with the longest waits of {len(snapshot.instances)}"
    return table


def _instance(instance: Instance, snapshot: Snapshot) -> list[Text]:
    state = instance.state
    if state == "active":
        state = "hot" if instance.hot else "full" if instance.held else state
    style = "" if state == "active" else "yellow" if state == "draining" else "red"
    late = instance.wait_s > snapshot.slo_s
    return [
        Text(instance.name),
        Text(state, style=style),
        Text(seconds(instance.wait_s), style="red" if late else ""),
        Text(_bar(instance.wait_s / snapshot.slo_s, 6), style="red" if late else "cyan"),
        Text(_known(instance.queued)),
        Text(_known(instance.engine_running)),
        Text(share(instance.kv_use)),
        Text(f"{instance.tokens_s:,.0f}"),
        Text(share(instance.share)),
        Text(seconds(instance.telemetry_age_s)),
    ]


def _requests(requests: list[Request]) -> Table:
    numbers = ("expected", "first token")
    table = Table(
        "request",
        "instance",
        "why",
        *(Column(name, justify="right") for name in numbers),
        "",
        box=SIMPLE_HEAD,
    )
    for request in requests:
        step = request.steps[-1] if request.steps else None
        late = request.ttft_s is not None and request.ttft_s > request.slo_s
        table.add_row(
            # An id is what a client says it is: text, never markup.
            Text(request.id[:40]),
            Text(step.instance if step is not None else "-"),
            Text(request.reason),
            Text(seconds(step.ttft_s if step is not None else None)),
            Text(seconds(request.ttft_s)),
            Text("late" if late else request.outcome, style="red" if late or _failed(request) else ""),
        )
    return table


def _moves(moves: list[MoveDone]) -> Table:
    table = Table(
        "moved",
        "from",
        "to",
        Column("gain", justify="right"),
        Column("ago", justify="right"),
        box=SIMPLE_HEAD,
    )
    for move in moves:
        gain = seconds(move.benefit_s) if move.outcome == "done" else move.outcome
        cells = (move.request_id[:40], move.source, move.target, gain, f"{move.age_s:.0f} s")
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _failed(request: Request) -> bool:
    return request.outcome in ("failed", "cut")


def _known(value: int | None) -> str:
    return "-" if value is None else str(value)


def _bar(portion: float, width: int) -> str:
    eighths = round(min(max(portion, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BARS[rest] if rest else "")).ljust(width)


def _spark(values: list[int]) -> str:
    most = max(values, default=0)
    if not most:
        return ""
    return "".join(_SPARKS[min(value * 8 // (most + 1), 7)] for value in values)


def _natural(name: str) -> tuple[str, int, str]:
    """worker-2 before worker-10."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0), name
