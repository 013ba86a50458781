from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dualmap_sim.workloads.arrival import Arrival
from dualmap_sim.workloads.reuse import LruChunks, bounded_hits, find_reuse, random_placement_hits

# A prompt is a path in a small tree, so that prefixes repeat; a chunk's id names the path down to it.
PROMPTS = st.lists(st.lists(st.integers(1, 3), max_size=5), max_size=40)


def arrivals(prompts: list[list[int]]) -> list[Arrival]:
    found = []
    for index, prompt in enumerate(prompts):
        chunks = tuple(hash(tuple(prompt[: depth + 1])) for depth in range(len(prompt)))
        found.append(Arrival(float(index), str(index), len(chunks) * 512 + 1, 1, chunks))
    return found


def test_a_full_cache_drops_the_tail_of_the_oldest_prompt() -> None:
    cache = LruChunks(3)
    assert cache.serve([1, 2]) == 0
    assert cache.serve([1, 2, 3]) == 2
    assert cache.serve([9]) == 0
    assert cache.serve([1, 2, 3]) == 2
    assert cache.serve([9]) == 0
    assert cache.serve([1, 2, 3, 4, 5]) == 2


def test_distances_are_of_the_reused_chunks() -> None:
    reuse = find_reuse(arrivals([[1, 1], [2, 2, 2], [3], [1, 1, 3]]))
    assert reuse.hits == [0, 0, 0, 2]
    assert reuse.in_requests == Counter({3: 2})
    # Two of its own, three and one of the others.
    assert reuse.in_chunks == Counter({6: 2})


@given(PROMPTS)
def test_a_chunk_is_found_exactly_by_a_cache_that_has_room_for_its_distance(prompts: list[list[int]]) -> None:
    requests = arrivals(prompts)
    reuse = find_reuse(requests)
    assert sum(reuse.hits) == sum(reuse.in_chunks.values()) == sum(reuse.in_requests.values())
    infinite = bounded_hits(requests, 10**6)
    assert infinite == reuse.hits == random_placement_hits(requests, 10**6, 1)
    for capacity in (8, 20, 50):
        # Prompts have five chunks at most: room for one more than the distance counts holds the whole of it.
        fits = sum(count for distance, count in reuse.in_chunks.items() if distance <= capacity - 5)
        assert fits <= sum(bounded_hits(requests, capacity)) <= sum(reuse.hits)
