"""A map over this machine's cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

__all__ = ["map_processes"]

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def map_processes(function: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
    """`function` of each item, in their order, computed by forks of this process.

    A fork costs milliseconds and shares the memory of this process. The function must not use
    PyTorch, whose threads do not survive a fork. With one item or core, no process is started.

    Args:
        function: of one item; it can be pickled, as can its results.
        items: its arguments.
    """
    workers = min(len(os.sched_getaffinity(0)), len(items))
    if workers < 2:
        return [function(item) for item in items]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(function, items))
