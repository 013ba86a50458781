"""Independent tasks over processes; the results are in the tasks' order, whatever the number of processes."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def spread(
    function: Callable[[T], R],
    tasks: Sequence[T],
    jobs: int = 1,
    done: Callable[[T, R], None] = lambda task, result: None,
) -> list[R]:
    """`function` of each task. It is a module's own function, and tasks and results can be pickled.

    `done` is called in this process as each one ends, in any order.
    """
    if jobs <= 1 or len(tasks) < 2:
        results = []
        for task in tasks:
            results.append(function(task))
            done(task, results[-1])
        return results
    # Not forked: the parent may hold threads and locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as executor:
        futures = {executor.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
