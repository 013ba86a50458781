"""A stream that breaks off in front of real vLLM goes on with the other one, token for token."""

from typing import Any

import aiohttp
import openai
import pytest

from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack

from .conftest import MODEL

LONG = "the quick brown fox jumps over the lazy dog " * 120
TOKENS = 300


async def stable_tokens(url: str) -> list[int]:
    """Tokens that stay what they are beside each other: a random model's other output is not even UTF-8."""
    stable: dict[str, int] = {}
    async with aiohttp.ClientSession() as http:

        async def ids(text: str) -> list[int]:
            ask = {"model": MODEL, "prompt": text, "add_special_tokens": False}
            async with http.post(f"{url}/tokenize", json=ask) as response:
                found: list[int] = (await response.json())["tokens"]
                return found

        for letter in "0123456789ABCDEFGHIJKLMNOP":
            [token] = await ids(letter)
            pairs = {letter * 2: [token, token]}
            for other, known in stable.items():
                pairs |= {letter + other: [token, known], other + letter: [known, token]}
            if all([await ids(text) == wanted for text, wanted in pairs.items()]):
                stable[letter] = token
    return list(stable.values())


@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_a_stream_goes_on_with_the_other_vllm(own_system: Stack, engines: list[str], kind: str) -> None:
    settings: Any = {
        "model": MODEL,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": {"ignore_eos": True, "allowed_token_ids": await stable_tokens(engines[0])},
    }
    if kind == "chat":
        settings["messages"] = [{"role": "user", "content": LONG}]
    else:
        settings["prompt"] = LONG

    async def ask(kill: bool) -> tuple[str, Any, set[str]]:
        """(text, usage, chunk ids) of a greedy answer; with `kill` its worker dies in the middle."""
        text, usage, ids = "", None, set()
        base_url = f"{own_system.router_urls[0]}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as api:
            resource: Any = api.chat.completions if kind == "chat" else api.completions
            raw = await resource.with_raw_response.create(**settings)
            async for piece in raw.parse():
                ids.add(piece.id)
                usage = piece.usage or usage
                for choice in piece.choices:
                    text += (choice.delta.content if kind == "chat" else choice.text) or ""
                if kill and len(text) > TOKENS // 8:
                    kill = False
                    own_system.children[raw.headers["x-dualmap-instance"]].process.kill()
        return text, usage, ids

    uninterrupted, expected, _ = await ask(kill=False)
    text, usage, ids = await ask(kill=True)
    assert len(uninterrupted) == TOKENS
    assert text == uninterrupted
    assert len(ids) == 1
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, TOKENS)
    left = await settle(own_system.redis_url, "vllm", own_system.router_urls)
    assert (left.sessions, left.charges, left.buffers) == (0, 0, 0)
