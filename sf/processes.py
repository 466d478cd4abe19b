"""A map over this machine's cores."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

__all__ = ["map_processes"]

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def map_processes(
    function: Callable[[Item], Outcome],
    items: Sequence[Item],
    finished: Callable[[Item], None] = lambda item: None,
) -> list[Outcome]:
    """`function` of each item, in their order, computed by forks of this process.

    A fork costs milliseconds and shares the memory of this process. PyTorch runs on one thread in
    it, for threads do not survive a fork. With one item or core, no process is started.

    Args:
        function: of one item; it can be pickled, as can its results.
        items: its arguments.
        finished: called with each item as its result arrives, in any order.
    """
    workers = min(len(os.sched_getaffinity(0)), len(items))
    results = []
    if workers < 2:
        for item in items:
            results.append(function(item))
            finished(item)
        return results
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        futures = [pool.submit(function, item) for item in items]
        item_of = dict(zip(futures, items, strict=True))
        try:
            for future in as_completed(futures):
                future.result()
                finished(item_of[future])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
