"""Which instances a request may be offered to, and the models and adapters that they serve."""

from typing import Any

import msgspec
import pytest

from dualmap.types import ChoiceRule
from dualmap_router.charges import Charges
from dualmap_router.errors import ApiError
from dualmap_router.models import Models
from dualmap_router.placement import Placement
from dualmap_router.pool import Pool
from dualmap_router.request import InferenceRequest
from dualmap_router.settings import RouterSettings
from dualmap_service.access import AccessSettings
from dualmap_service.registry import Member, Membership
from dualmap_service.store import Store
from dualmap_wire.telemetry import Registration

NAMES = tuple("abcdef")
ADAPTED = ("b", "d", "e")


def member(name: str, **fields: Any) -> Member:
    registration = Registration(
        instance=name, pool="p", model="m", grpc_address="", telemetry_address="", generation=1, **fields
    )
    return Member(registration, True, None)


def membership() -> Membership:
    """Six instances of a model; three serve an adapter, one has the model by a second name."""
    members = {name: member(name, adapters=("lora",) if name in ADAPTED else ()) for name in NAMES}
    members["a"] = member("a", aliases=("m-v2",))
    return Membership(1, members)


def a_pool(*reachable: str) -> Pool:
    pool = Pool()
    pool.update(membership(), set(reachable or NAMES))
    return pool


def test_everyone_serves_the_model_and_some_its_adapter() -> None:
    pool = a_pool()
    assert pool.offer("m").names == pool.offer(None).names == pool.offer("unheard of").names == NAMES
    assert pool.offer("lora").names == ADAPTED
    assert pool.offer("m-v2").names == ("a",)
    assert pool.offer("lora").packed == b"b\nd\ne"


def test_who_cannot_be_reached_is_not_offered() -> None:
    pool = a_pool("a", "d")
    assert (pool.offer("m").names, pool.offer("lora").names) == (("a", "d"), ("d",))
    assert a_pool("a").offer("lora").names == ()


def test_an_adapter_that_has_come_everywhere_is_no_exception() -> None:
    pool = a_pool()
    pool.update(Membership(2, {name: member(name, adapters=("lora",)) for name in NAMES}), set(NAMES))
    assert pool.offer("lora") is pool.everyone


def a_placement() -> Placement:
    store = Store(AccessSettings(redis_url="redis://127.0.0.1:1"), "never started")
    placement = Placement(RouterSettings(pool="p"), "r", store, Charges(store, "p", "r"))
    placement.pool.update(membership(), set(NAMES))
    return placement


def request(text: str, model: str) -> InferenceRequest:
    return InferenceRequest(model, False, False, False, text.encode(), None, "", 0)


async def test_an_adapters_requests_go_only_where_it_is_served() -> None:
    placement = a_placement()
    seen: set[str] = set()
    for number in range(100):
        prompt = placement.prompt(request(f"prompt {number}", "lora"), "lora", None)
        call, candidates = placement.route_call(prompt, 5.0, ChoiceRule())
        assert (call.pair, call.pool) == (list(candidates), b"b\nd\ne")
        assert len(set(candidates)) == 2
        seen |= set(candidates)
        placed = await placement.place(prompt, 5.0, ChoiceRule())
        assert placed.instance in ADAPTED
    assert seen == set(ADAPTED)


async def test_a_move_to_who_does_not_serve_it_is_decided_anew() -> None:
    placement = a_placement()
    prompt = placement.prompt(request("prompt", "lora"), "lora", None)
    assert (await placement.place(prompt, 5.0, ChoiceRule(), target="d", first=False)).instance == "d"
    assert (await placement.place(prompt, 5.0, ChoiceRule(), target="a", first=False)).instance in ADAPTED


async def test_nobody_left_who_serves_it() -> None:
    placement = a_placement()
    prompt = placement.prompt(request("prompt", "lora"), "lora", None)
    assert placement.usable_for("lora") == set(ADAPTED)
    assert placement.usable_for(None) == set(NAMES)
    with pytest.raises(ApiError) as refused:
        await placement.place(prompt, 5.0, ChoiceRule(), exclude=set(ADAPTED))
    assert refused.value.status == 503
    assert len(placement.charges) == 0


def test_models_by_every_name() -> None:
    models = Models()
    models.follow(membership())
    for name in ("m", "m-v2", "lora", None):
        models.check(name)
    with pytest.raises(ApiError) as unknown:
        models.check("other")
    assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
    assert [models.adapter(name) for name in ("m", "m-v2", "lora", None)] == ["", "", "lora", ""]
    listed = {card["id"]: card["parent"] for card in msgspec.json.decode(models.listing())["data"]}
    assert listed == {"m": None, "m-v2": None, "lora": "m"}
