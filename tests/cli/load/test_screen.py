import io

from rich.console import Console

from dualmap_cli.load import Progress, make_report
from dualmap_cli.load.screen import LineView, LiveView, progress_line, progress_view, report_view
from tests.cli.load.test_report import record

PROGRESS = Progress(
    total=10,
    elapsed_s=12.3,
    sent=8,
    answered=5,
    in_flight=2,
    errors=1,
    moves=3,
    within_slo_share=0.5,
    ttft_p50_s=0.25,
    ttft_p90_s=None,
    instances={"i-1": 4, "i-2": 2},
)


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=200), file


def test_progress_in_one_line() -> None:
    assert progress_line(PROGRESS) == (
        "12 s: sent 8/10, answered 5, in flight 2, ttft p50 0.250 p90 -, within SLO 50.0%, errors 1, moves 3"
    )


def test_a_log_gets_lines_only_now_and_then() -> None:
    log, file = console(terminal=False)
    assert isinstance(progress_view(log), LineView)
    with LineView(log, every_s=0) as often, LineView(log, every_s=1000) as seldom:
        often.show(PROGRESS)
        seldom.show(PROGRESS)
    assert file.getvalue() == progress_line(PROGRESS) + "\n"


def test_a_terminal_gets_bars() -> None:
    terminal, file = console(terminal=True)
    view = progress_view(terminal)
    assert isinstance(view, LiveView)
    with view:
        view.show(PROGRESS)
    lines = file.getvalue().splitlines()
    assert any("━" in line and "sent" not in line for line in lines)
    assert any(line.startswith(progress_line(PROGRESS)) for line in lines)
    assert any("i-2" in line and "━" in line for line in lines)


def test_reports_render_full_and_empty() -> None:
    page, file = console(terminal=False)
    page.print(report_view(make_report([])))
    assert "within SLO" in file.getvalue()
    records = [
        record(0, instance="[i]", reason="escape", router="a", cached_tokens=3),
        record(1, router="b", error="timeout"),
        record(2, finished=False),
    ]
    page.print(report_view(make_report(records, held_back=4)))
    for expected in ("[i]", "escape 1", "1 (timeout 1)", "unfinished", "4 requests waited", "router"):
        assert expected in file.getvalue()
