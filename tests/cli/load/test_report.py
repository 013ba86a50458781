import json

import msgspec
import pytest

from dualmap_cli.load import Percentiles, RequestRecord, make_report
from dualmap_cli.load.gaps import add_gap


def record(number: int, **values: object) -> RequestRecord:
    fields = {
        "request_id": f"r{number}",
        "target": "http://one",
        "due_s": float(number),
        "sent_s": float(number),
        "slo_s": 2.0,
        "finished": True,
        "status": 200,
        "ttft_s": 1.0,
        "e2e_s": 4.0,
        "input_tokens": 100,
        "output_tokens": 10,
        **values,
    }
    return msgspec.convert(fields, RequestRecord)


def test_an_empty_run_has_a_report() -> None:
    report = make_report([])
    assert report.sent == report.answered == report.errors == 0
    assert report.within_slo_share is report.rate_req_s is report.goodput_req_s is None
    assert report.ttft_s == report.itl_s == Percentiles()
    assert report.per_instance == report.per_router == []
    assert json.loads(report.to_json())["ttft_s"] == {"p50": None, "p90": None, "p99": None}


def test_the_numbers_add_up() -> None:
    gaps: dict[int, int] = {}
    add_gap(gaps, 1.0, 9)
    report = make_report(
        [
            record(0, instance="a", reason="affinity", cached_tokens=80, predicted_ttft_s=1.5, gaps=gaps),
            record(
                1, instance="a", reason="escape", cached_tokens=0, ttft_s=3.0, predicted_ttft_s=1.0, moves=1
            ),
            record(2, instance="b", reason="affinity", cached_tokens=40, router="r1", duplicate=True),
            record(3, instance="b", error="http_500", ttft_s=None),
            record(4, finished=False, ttft_s=None, e2e_s=None),
        ],
        held_back=2,
    )
    assert (report.sent, report.answered, report.errors, report.unfinished) == (5, 3, 1, 1)
    assert (report.duplicates, report.moves, report.escapes, report.held_back) == (1, 1, 1, 2)
    assert report.within_slo_share == 2 / 4
    assert report.duration_s == 7.0
    assert report.rate_req_s == 1.0
    assert report.goodput_req_s == 2 / 7
    assert report.ttft_s == Percentiles(1, 3, 3)
    assert report.itl_s == Percentiles(1, 1, 1)
    assert report.ttft_error_s == Percentiles(0.5, 2, 2)
    assert report.cached_token_share == 120 / 300
    assert (report.input_tokens, report.output_tokens) == (300, 30)
    assert report.reasons == {"affinity": 2, "escape": 1}
    assert report.errors_by_kind == {"http_500": 1}
    a, b = report.per_instance
    assert (a.instance, a.requests, a.share, a.cached_token_share, a.ttft_p90_s) == ("a", 2, 0.5, 0.4, 3)
    assert (b.instance, b.requests, b.share, b.cached_token_share, b.ttft_p90_s) == ("b", 2, 0.5, 0.4, 1)
    assert [(group.router, group.requests) for group in report.per_router] == [("http://one", 3), ("r1", 1)]


def test_an_engine_that_tells_no_reuse_is_unknown() -> None:
    assert make_report([record(0)]).cached_token_share is None
    assert make_report([record(0), record(1, cached_tokens=50)]).cached_token_share == 0.5


@pytest.mark.parametrize(("ttft_s", "within"), [(2.0, 1.0), (2.01, 0.0)])
def test_the_slo_is_inclusive(ttft_s: float, within: float) -> None:
    assert make_report([record(0, ttft_s=ttft_s)]).within_slo_share == within


def test_an_error_is_a_miss_however_early() -> None:
    assert make_report([record(0, error="cut")]).within_slo_share == 0
