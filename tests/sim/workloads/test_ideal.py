from dualmap_sim.workloads import Message, Span, TimedRequest, ideal_hit_share, summarize
from dualmap_sim.workloads.ideal import block_chain


def request(*spans: Span) -> TimedRequest:
    return TimedRequest(at_s=0, request_id="r", output_tokens=10, prompt=spans)


def test_only_a_shared_prefix_counts() -> None:
    first = request(Span("a", 512), Span("b", 512))
    same_tail = request(Span("x", 512), Span("b", 512))
    same_head = request(Span("a", 512), Span("c", 100))
    assert ideal_hit_share([first, same_tail]) == 0
    assert ideal_hit_share([first, same_head]) == 1 / 4
    assert ideal_hit_share([first, first]) == 1 / 2


def test_blocks_cross_spans_and_the_last_is_partial() -> None:
    assert len(block_chain([Span("a", 300), Span("b", 300)])) == 2
    one = block_chain([Span("a", 300), Span("b", 724)])
    other = block_chain([Span("a", 300), Span("b", 212), Span("c", 512)])
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_a_cut_block_is_not_the_whole_block() -> None:
    assert ideal_hit_share([request(Span("a", 512)), request(Span("a", 100))]) == 0
    assert ideal_hit_share([request(Span("a", 512)), request(Span("a", 100))], block_tokens=100) == 1 / 7


def test_messages_count_like_a_prompt() -> None:
    chat = TimedRequest(
        at_s=0,
        request_id="r",
        output_tokens=1,
        messages=(Message("system", (Span("a", 512),)), Message("user", (Span("b", 512),))),
    )
    assert ideal_hit_share([request(Span("a", 512), Span("b", 512)), chat]) == 1 / 2


def test_an_empty_workload_has_a_summary() -> None:
    assert summarize([]).ideal_hit_share == 0
    assert summarize([]).requests == 0
