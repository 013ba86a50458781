"""Tenants in real vLLM: every endpoint that computes takes the salt of routers; nobody finds the blocks of others."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions

from ..services.router.keys_file import entry, write
from .conftest import MODEL

ACME, SECOND, OTHER = "key-acme", "key-second", "key-other"


@pytest.fixture
async def url(options: StackOptions, http: aiohttp.ClientSession, tmp_path: Path) -> AsyncIterator[str]:
    """A router that asks for keys, in front of one of the engines."""
    keys = write(tmp_path / "keys.json", entry(ACME), entry(SECOND), entry(OTHER, tenant="other"))
    own = replace(
        options, routers=1, rebalancers=0, pool="tenants", engine_urls=options.engine_urls[:1],
        router_flags={"api_keys_file": keys},
    )  # fmt: skip
    async with Stack(own) as stack:
        yield stack.router_urls[0]
        assert (await settle(stack.redis_url, "tenants", stack.router_urls)).clean


def body_of(path: str, text: str) -> dict[str, Any]:
    """A request of an endpoint for one token."""
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "temperature": 0} | {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 1},
        "/v1/completions": {"prompt": text, "max_tokens": 1},
        "/v1/messages": {"messages": messages, "max_tokens": 1},
        "/v1/responses": {"input": text, "max_output_tokens": 1},
    }[path]


def cached_in(usage: dict[str, Any]) -> int:
    """The cached tokens of an answer, by whichever name."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(details.get("cached_tokens") or usage.get("cache_read_input_tokens") or 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
async def test_no_tenant_finds_anothers_blocks(url: str, http: aiohttp.ClientSession, path: str) -> None:
    text = f"{uuid.uuid4()} " + "the quick brown fox jumps over the lazy dog " * 40

    async def cached(key: str, **fields: Any) -> int:
        headers = {"authorization": f"Bearer {key}"}
        async with http.post(url + path, json=body_of(path, text) | fields, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return cached_in((await answer.json())["usage"])

    assert await cached(ACME) == 0
    assert await cached(SECOND) > 200
    assert await cached(OTHER) == 0
    assert await cached(OTHER) > 200
    # Its own salt is one of many of its tenant's, and vLLM takes what the router makes of any.
    assert await cached(ACME, cache_salt="mine@/") == 0
    assert await cached(SECOND, cache_salt="mine@/") > 200
    assert await cached(OTHER, cache_salt="mine@/") == 0
