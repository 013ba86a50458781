from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_sim.engine import answers, canonical_prompt, expected_text, matches
from dualmap_sim.engine.text import Answer, decode, encode, from_token_ids, split_continuation, token_ids


@given(st.text(min_size=1).map(str.encode), st.integers(1, 40), st.integers(0, 160))
def test_a_prompt_with_part_of_its_answer_gets_the_rest(prompt: bytes, total: int, cut: int) -> None:
    answer = expected_text(prompt, total)
    base, so_far_bytes = split_continuation(prompt)
    cut = min(max(cut, 4), len(answer))
    rest = expected_text(prompt.rstrip(b"\0") + answer[:cut].encode(), total + 2)
    assert rest.startswith(answer[cut:])
    assert matches(prompt, answer, total)
    assert matches(prompt, answer[:-1])
    assert not matches(prompt, answer[:-1] + "!")
    assert base + prompt.rstrip(b"\0")[len(base) :][:so_far_bytes] == prompt.rstrip(b"\0")


@given(st.binary(min_size=1, max_size=50).map(lambda raw: raw.hex().encode()), st.integers(1, 30))
def test_token_ids_continue_like_text(prompt: bytes, cut: int) -> None:
    answer = Answer(prompt)
    ids = token_ids(encode(prompt)) + token_ids(answer.token_bytes(0, cut))
    assert expected_text(from_token_ids(ids), 5) == answer.text(cut, cut + 5)


@given(st.text().filter(lambda text: "\0" not in text))
def test_tokens_decode_to_the_text(text: str) -> None:
    tokens = encode(text.encode())
    assert decode(tokens) == text
    assert from_token_ids(token_ids(tokens)) == tokens


def test_a_prompt_that_merely_looks_like_an_answer_is_a_prompt() -> None:
    assert split_continuation(b"what is =ab cde ") == (b"what is =ab cde ", 0)


def test_choices_differ_and_prompts_differ() -> None:
    assert len({expected_text(b"p", 8, choice) for choice in range(4)} | {expected_text(b"q", 8)}) == 5


def test_a_chat_and_its_continuation_are_one_answer() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "odd length"}]
    whole = expected_text(canonical_prompt({"messages": messages}), 20)
    resumed = {
        "messages": [*messages, {"role": "assistant", "content": whole[:30]}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert answers(resumed, whole[30:])
    assert not answers(resumed, whole)


def test_an_answer_keeps_its_tokens_as_a_message_of_the_next_turn() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "odd length"}]
    first = encode(canonical_prompt({"messages": messages}))
    answer = expected_text(first, 20)
    turns = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "more"}]
    assert canonical_prompt({"messages": turns}).startswith(first + answer.encode())


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "b"}]},
        {"messages": [{"role": "system", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "f"}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{"id": "1"}]}]},
    ],
)
def test_everything_in_a_chat_counts(other: dict[str, Any]) -> None:
    assert canonical_prompt(other) != canonical_prompt({"messages": [{"role": "user", "content": "a"}]})


def test_text_parts_are_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert canonical_prompt({"messages": [{"role": "user", "content": parts}]}) == canonical_prompt(
        {"messages": [{"role": "user", "content": "ab"}]}
    )
