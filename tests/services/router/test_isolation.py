"""Tenants in engines' caches: a body's salt is its tenant's whatever it says, and what takes none does not pass."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.prefix import tenant_salt
from dualmap_router.caller import Caller
from dualmap_router.errors import ApiError
from dualmap_router.http_message import HttpRequest
from dualmap_router.isolation import PerTenant, Shared, isolation_for, with_salt
from dualmap_router.request import parse_inference
from dualmap_router.settings import RouterSettings

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi } \\" + '"'}]


def request(body: bytes, path: str = CHAT, tenant: str = "acme") -> HttpRequest:
    return HttpRequest("POST", path.encode(), body=body, caller=Caller("k", tenant))


def salted(body: bytes, tenant: str = "acme", secret: str = "") -> tuple[dict[str, Any], str]:
    """(the body that the engine gets, the salt that placement goes by)."""
    asked = request(body, tenant=tenant)
    inference = PerTenant(secret).inference(asked, parse_inference(CHAT, body))
    return json.loads(asked.body), inference.cache_salt


def body(**fields: Any) -> bytes:
    return json.dumps({"messages": MESSAGES, **fields}).encode()


def test_a_body_gets_its_tenants_salt_and_stays_as_it_was_otherwise() -> None:
    sent, salt = salted(body(temperature=0.5))
    assert sent == {"messages": MESSAGES, "temperature": 0.5, "cache_salt": salt}
    assert salt == tenant_salt("acme")
    assert salted(body(), "other")[1] != salt
    assert salted(body(), secret="s")[1] != salt


def test_its_own_salt_parts_a_tenants_requests() -> None:
    sent, salt = salted(body(cache_salt="mine"))
    assert sent["cache_salt"] == salt == tenant_salt("acme", "mine")
    assert salt != salted(body())[1]
    assert salt != salted(body(cache_salt="mine"), "other")[1]


VICTIM = tenant_salt("victim")


@pytest.mark.parametrize(
    "raw",
    [
        body(cache_salt=VICTIM),
        b'{"cache\\u005fsalt": "%b", "messages": []}' % VICTIM.encode(),
        b'{"messages": [], "cache_salt": "a", "cache_salt": "%b"}' % VICTIM.encode(),
        b'{"messages": [], "x": {"cache_salt": "%b"}}' % VICTIM.encode(),
        b'{"messages": [], "cache_salt": "%b"}  \r\n\t' % VICTIM.encode(),
        b'{"messages": []  ,"cache_salt" :null}',
    ],
    ids=range(6),
)
def test_nobody_takes_anothers_salt(raw: bytes) -> None:
    raw = raw.replace(b'"messages": []', b'"messages": [{"role": "user", "content": "a"}]')
    sent, salt = salted(raw, "eve")
    assert sent["cache_salt"] == salt != VICTIM
    # As the engines read it: the one that comes last.
    assert msgspec.json.decode(with_salt(raw, "s"))["cache_salt"] == "s"


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.lists(st.integers()), max_size=4))
def test_any_object_takes_a_salt(fields: dict[str, Any]) -> None:
    for text in (json.dumps(fields), json.dumps(fields, indent=1) + "\n"):
        assert json.loads(with_salt(text.encode(), "salt")) == {**fields, "cache_salt": "salt"}


@pytest.mark.parametrize("path", ["/v1/score", "/rerank", "/v1/chat/completions/batch", "/pooling"])
def test_what_passes_through_is_salted_where_it_computes(path: str) -> None:
    asked = request(b'{"query": "q", "cache_salt": "mine"}', path)
    PerTenant("").passthrough(asked)
    assert json.loads(asked.body) == {"query": "q", "cache_salt": tenant_salt("acme", "mine")}


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b'{"a": NaN}', b'{"cache_salt": 5}', b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16")],
)
def test_what_cannot_be_read_cannot_be_salted(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        PerTenant("").passthrough(request(raw, "/v1/score"))
    assert caught.value.status == 400


@pytest.mark.parametrize("path", ["/tokenize", "/version", "/v1/messages/count_tokens"])
def test_what_looks_at_no_cache_passes_as_it_is(path: str) -> None:
    asked = request(b"anything", path)
    PerTenant("").passthrough(asked)
    assert asked.body == b"anything"


@pytest.mark.parametrize(
    "path",
    ["/v2/embed", "/v1/audio/transcriptions", "/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/new",
     "/v1/score/", "//v1/score"],
)  # fmt: skip
def test_what_might_tell_of_others_does_not_pass(path: str) -> None:
    with pytest.raises(ApiError) as caught:
        PerTenant("").passthrough(request(b"{}", path))
    assert (caught.value.status, caught.value.code) == (403, "not_isolated")


def test_whoever_shares_changes_nothing() -> None:
    asked = request(body(cache_salt="mine"))
    inference = parse_inference(CHAT, asked.body)
    assert Shared().inference(asked, inference) is inference
    Shared().passthrough(asked)
    assert asked.body == body(cache_salt="mine")


def test_tenants_are_kept_apart_where_they_are_known() -> None:
    assert isinstance(isolation_for(RouterSettings()), Shared)
    assert isinstance(isolation_for(RouterSettings(api_keys_file="k")), PerTenant)
    assert isinstance(isolation_for(RouterSettings(api_keys_file="k", share_prefixes=True)), Shared)
