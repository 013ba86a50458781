"""The numbers of a run, from its records."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import msgspec

from dualmap_cli.load.gaps import gap_percentile, merge_gaps
from dualmap_cli.load.percentiles import Percentiles, percentiles
from dualmap_cli.load.record import RequestRecord


class GroupReport(msgspec.Struct, frozen=True):
    """One instance's or router's part; `share` is of the requests whose part is known."""

    requests: int
    share: float
    cached_token_share: float | None
    ttft_p90_s: float | None


class InstanceReport(GroupReport, frozen=True):
    """What one instance served."""

    instance: str


class RouterReport(GroupReport, frozen=True):
    """What one router, or one target that names no router, answered."""

    router: str


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run in numbers; seconds are model seconds, shares are 0 to 1, None is "nothing measured".

    `sent` = `answered` + `errors` + `unfinished` (still running when the run was stopped).
    `within_slo_share` is of the finished requests: an error is a miss. `goodput_req_s` counts answers within
    their SLO. `held_back` requests waited for the bound on requests in flight, and `lag_s` is how late
    requests left: times count from the sending, so a large lag means the generator was the bottleneck.
    `escapes` and `moves` are as the router's headers tell; `duplicates` were answered more than once.
    """

    sent: int
    answered: int
    errors: int
    unfinished: int
    duplicates: int
    moves: int
    escapes: int
    held_back: int
    within_slo_share: float | None
    duration_s: float
    rate_req_s: float | None
    goodput_req_s: float | None
    ttft_s: Percentiles
    itl_s: Percentiles
    e2e_s: Percentiles
    ttft_error_s: Percentiles
    lag_s: Percentiles
    input_tokens: int
    output_tokens: int
    cached_token_share: float | None
    per_instance: list[InstanceReport]
    per_router: list[RouterReport]
    reasons: dict[str, int]
    errors_by_kind: dict[str, int]

    def to_json(self) -> bytes:
        """The report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


def make_report(records: Sequence[RequestRecord], held_back: int = 0) -> LoadReport:
    """Add the records up; latencies are those of full answers."""
    answers = [record for record in records if record.ok]
    finished = [record for record in records if record.finished]
    within = sum(record.within_slo for record in finished)
    reasons = Counter(record.reason for record in records if record.reason is not None)
    kinds = Counter(record.error for record in finished if record.error is not None)
    gaps = merge_gaps(record.gaps for record in answers)
    duration_s = _duration_s(finished)
    return LoadReport(
        sent=len(records),
        answered=len(answers),
        errors=len(finished) - len(answers),
        unfinished=len(records) - len(finished),
        duplicates=sum(record.duplicate for record in records),
        moves=sum(record.moves for record in records),
        escapes=reasons["escape"],
        held_back=held_back,
        within_slo_share=within / len(finished) if finished else None,
        duration_s=duration_s,
        rate_req_s=_sending_rate(records),
        goodput_req_s=within / duration_s if duration_s else None,
        ttft_s=percentiles(record.ttft_s for record in answers),
        itl_s=Percentiles(*(gap_percentile(gaps, share) for share in (0.5, 0.9, 0.99))),
        e2e_s=percentiles(record.e2e_s for record in answers),
        ttft_error_s=percentiles(_prediction_error_s(record) for record in answers),
        lag_s=percentiles(record.sent_s - record.due_s for record in records),
        input_tokens=sum(record.input_tokens for record in answers),
        output_tokens=sum(record.output_tokens for record in answers),
        cached_token_share=_cached_share(answers),
        per_instance=[
            InstanceReport(*_numbers(group, share), name)
            for name, group, share in _groups(finished, lambda record: record.instance)
        ],
        per_router=[
            RouterReport(*_numbers(group, share), name)
            for name, group, share in _groups(finished, lambda record: record.router or record.target)
        ],
        reasons=dict(sorted(reasons.items())),
        errors_by_kind=dict(sorted(kinds.items())),
    )


def _duration_s(finished: Sequence[RequestRecord]) -> float:
    if not finished:
        return 0.0
    first_s = min(record.sent_s for record in finished)
    return max(record.sent_s + (record.e2e_s or 0.0) for record in finished) - first_s


def _sending_rate(records: Sequence[RequestRecord]) -> float | None:
    times_s = [record.sent_s for record in records]
    span_s = max(times_s) - min(times_s) if times_s else 0.0
    return (len(records) - 1) / span_s if span_s > 0 else None


def _prediction_error_s(record: RequestRecord) -> float | None:
    if record.predicted_ttft_s is None or record.ttft_s is None:
        return None
    return abs(record.predicted_ttft_s - record.ttft_s)


def _cached_share(records: Sequence[RequestRecord]) -> float | None:
    # An engine that never tells what it reused is unknown, not zero.
    known = [record for record in records if record.cached_tokens is not None]
    prompt_tokens = sum(record.input_tokens for record in known)
    return sum(record.cached_tokens or 0 for record in known) / prompt_tokens if prompt_tokens else None


def _groups(
    records: Sequence[RequestRecord], name_of: Callable[[RequestRecord], str | None]
) -> list[tuple[str, list[RequestRecord], float]]:
    groups: defaultdict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        name = name_of(record)
        if name is not None:
            groups[name].append(record)
    known = sum(map(len, groups.values()))
    return [(name, group, len(group) / known) for name, group in sorted(groups.items())]


def _numbers(group: list[RequestRecord], share: float) -> tuple[int, float, float | None, float | None]:
    answers = [record for record in group if record.ok]
    ttft_p90_s = percentiles(record.ttft_s for record in answers).p90
    return len(group), share, _cached_share(answers), ttft_p90_s
