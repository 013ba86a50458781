import pytest

from dualmap_sim.workloads import Traffic, make_workload
from dualmap_sim.workloads.arrival import to_arrivals
from dualmap_sim.workloads.describe import PoolSize, describe
from dualmap_sim.workloads.verdict import verdict


def judge(name: str, pool: PoolSize) -> str:
    # Four prompts are soon everywhere, wherever requests go.
    settings = {"prompts": 4} if name == "system-prompts" else {}
    requests = make_workload(name, Traffic(4, count=2000), settings)
    return verdict(describe(to_arrivals(requests), pool), pool)


@pytest.mark.parametrize(
    ("name", "pool", "says"),
    [
        ("unique", PoolSize(), ["cannot pay here", "only 0% of the prefill work"]),
        ("agents", PoolSize(), ["can pay here", "hot prefixes (one of 8 chunks"]),
        ("documents", PoolSize(kv_blocks=100), ["KV room (an infinite cache saves"]),
        ("documents", PoolSize(kv_blocks=3), ["cannot pay with this KV room", "8 x 3 blocks"]),
        ("system-prompts", PoolSize(kv_blocks=5000), ["hardly pays here", "random placement already saves"]),
        ("documents", PoolSize(kv_blocks=10_000, slo_s=2), ["can pay here", "long prompts ("]),
        ("drift", PoolSize(kv_blocks=10_000), ["text that is new ("]),
    ],
)
def test_the_verdict_answers_and_names_the_limit(name: str, pool: PoolSize, says: list[str]) -> None:
    text = judge(name, pool)
    for words in says:
        assert words in text
    assert text.endswith(".")
