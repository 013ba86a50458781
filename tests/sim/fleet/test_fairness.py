"""What a tenant's flood costs the others in a simulated fleet; the figures are docs/decisions/0024."""

from bench.fairness import ORDERS, make_setup, measure, mixed

SPAN_S, FLOOD_TIMES, SEED = 20.0, 5.0, 3
FACTOR_P50, FACTOR_P90 = 10.0, 5.0
"""A request that takes 0.08 s alone waits for what runs and for a turn of the flood."""


def test_turns_keep_a_flood_within_a_factor_of_the_others_ttft() -> None:
    factors, within = {}, {}
    for name, rule in ORDERS.items():
        setup = make_setup(rule)
        solo = measure(setup, mixed(0.0, SPAN_S, SEED))
        flooded = measure(setup, mixed(FLOOD_TIMES, SPAN_S, SEED))
        factors[name] = [
            max(flooded[who].p50_s / solo[who].p50_s for who in solo),
            max(flooded[who].p90_s / solo[who].p90_s for who in solo),
        ]
        within[name] = min(flooded[who].within for who in solo)
    p50, p90 = factors["late-last, turns"]
    assert p50 <= FACTOR_P50 and p90 <= FACTOR_P90
    assert within["late-last, turns"] == 1.0
    # The others would fail that.
    assert factors["late-last"][0] > FACTOR_P50
    assert factors["fcfs"][0] > FACTOR_P50 and within["fcfs"] < 0.9
