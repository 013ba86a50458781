import json

from dualmap_sim.workloads import Message, Span, TimedRequest


def test_a_prompt_goes_to_completions() -> None:
    request = TimedRequest(
        at_s=1.0, request_id="r", output_tokens=7, prompt=(Span("a", 3), Span("b", 2)), tenant="t"
    )
    body = json.loads(request.body("m"))
    assert request.path == "/v1/completions"
    assert request.input_tokens == 5
    assert body == {
        "model": "m",
        "prompt": Span("a", 3).text() + Span("b", 2).text(),
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "t",
    }


def test_messages_go_to_chat() -> None:
    messages = (Message("system", (Span("a", 2),)), Message("user", (Span("b", 1), Span("c", 1))))
    request = TimedRequest(at_s=1.0, request_id="r", output_tokens=7, messages=messages)
    body = json.loads(request.body("m", stream=False, extra={"ignore_eos": True}))
    assert request.path == "/v1/chat/completions"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == Span("b", 1).text() + Span("c", 1).text()
    assert body["stream"] is False
    assert "stream_options" not in body
    assert body["ignore_eos"] is True
