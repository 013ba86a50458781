"""The keys file: what it must say, what it must not, and finding a key in it."""

import hashlib
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.limits import Limits
from dualmap_router.api_keys import MAX_FILE_BYTES, Keyring, KeysError, new_key, read_entries

from .keys_file import entry, text_of


def test_a_key_with_everything() -> None:
    full = entry(
        "k1",
        "acme-prod",
        requests_per_s=50,
        burst=100,
        concurrency=200,
        priority=-7,
        expires="2027-01-01T00:00:00Z",
    )
    keys = Keyring(read_entries(text_of(full)))
    key = keys.find("k1")
    assert key is not None
    assert (key.caller.name, key.caller.tenant, key.caller.admin) == ("acme-prod", "acme", False)
    assert key.caller.most_urgent == -7
    assert key.caller.limits == Limits(50.0, 100, 200)
    assert key.expires_s == 1798761600.0
    assert keys.find("k2") is None


def test_a_key_with_no_more_than_it_needs() -> None:
    key = Keyring(read_entries(text_of(entry("k1")))).find("k1")
    assert key is not None
    assert (key.caller.admin, key.caller.limits, key.expires_s) == (False, None, math.inf)
    assert key.caller.most_urgent == 0


def test_an_administrator_may_ask_for_any_priority() -> None:
    key = Keyring(read_entries(text_of(entry("k1", admin=True)))).find("k1")
    assert key is not None
    assert (key.caller.admin, key.caller.most_urgent) == (True, None)


@pytest.mark.parametrize(("rate", "burst"), [(50, 50), (0.2, 1), (1.5, 2)])
def test_a_burst_is_a_seconds_worth_unless_told(rate: float, burst: int) -> None:
    [only] = read_entries(text_of(entry("k1", requests_per_s=rate)))
    assert only.limits() == Limits(rate, burst)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "truncated"),
        (b"[]", "object"),
        (b"{}", "keys"),
        (b'{"keys": {}}', "$.keys"),
        (b'{"keys": [], "more": 1}', "more"),
        (b"\xff\xfe", "malformed"),
        (text_of(entry("k") | {"sha": "x"}), "sha"),
        (text_of(entry("k") | {"sha256": "abc"}), "sha256"),
        (text_of(entry("k") | {"sha256": "A" * 64}), "sha256"),
        (text_of(entry("k", "n" * 129)), "name"),
        (text_of(entry("k", tenant="")), "tenant"),
        (text_of(entry("k", tenant="a/b")), "tenant"),
        (text_of(entry("k", tenant="a b")), "tenant"),
        (text_of(entry("k", tenant="{x}")), "tenant"),
        (text_of(entry("k", requests_per_s=0)), "requests_per_s"),
        (text_of(entry("k", requests_per_s=-1)), "requests_per_s"),
        (text_of(entry("k", burst=1)), "burst"),
        (text_of(entry("k", requests_per_s=1, burst=0)), "burst"),
        (text_of(entry("k", concurrency=1.5)), "concurrency"),
        (text_of(entry("k", admin="yes")), "admin"),
        (text_of(entry("k", priority=1)), "$.keys[0].priority"),
        (text_of(entry("k", priority=-(2**31) - 1)), "$.keys[0].priority"),
        (text_of(entry("k", priority=-1.5)), "$.keys[0].priority"),
        (text_of(entry("k", priority="-1")), "$.keys[0].priority"),
        (text_of(entry("k", priority=-1, admin=True)), "'k' has a priority and is an administrator's"),
        (text_of(entry("k", expires="2027-01-01T00:00:00")), "expires"),
        (text_of(entry("k", expires="soon")), "expires"),
        (text_of(entry("a", "same"), entry("b", "same")), "two keys are named 'same'"),
        (text_of(entry("k", "one"), entry("k", "other")), "'one' and 'other' are the same key"),
        (text_of(entry("a", concurrency=1), entry("b")), "tenant 'acme' different limits"),
        (b" " * (MAX_FILE_BYTES + 1), "larger"),
    ],
    ids=range(31),
)
def test_what_is_no_keys_file(text: bytes, said: str) -> None:
    with pytest.raises(KeysError, match=re.escape(said)):
        read_entries(text)


def test_keys_of_a_tenant_share_its_limits_and_tenants_do_not() -> None:
    keys = (entry("a", concurrency=1), entry("b", concurrency=1), entry("c", tenant="other", concurrency=2))
    assert len(Keyring(read_entries(text_of(*keys)))) == 3


def test_new_keys_hold_256_bits_and_differ() -> None:
    made: list[tuple[str, str]] = [new_key() for _ in range(100)]
    assert len({key for key, _ in made}) == 100
    for key, digest in made:
        assert key.startswith("dualmap-")
        assert len(key) == len("dualmap-") + 43
        assert hashlib.sha256(key.encode()).hexdigest() == digest


@given(st.text(st.characters(max_codepoint=255)))
def test_anything_may_be_shown(shown: Any) -> None:
    assert Keyring(read_entries(text_of(entry("the key")))).find(shown) is None or shown == "the key"
