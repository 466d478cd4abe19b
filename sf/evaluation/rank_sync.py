"""Steps that succeed on every process of a data-parallel evaluation, or fail on all.

A process that fails alone would leave the others waiting in lmms-eval's collectives. Here all
processes learn of the failure and continue with the next benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sf.errors import DataError
from sf.ranks import gathered

if TYPE_CHECKING:
    from sf.evaluation.model import SparseChatModel

__all__ = ["AllFailed", "answering_together", "together"]

Value = TypeVar("Value")


class AllFailed(Exception):
    """A step failed on some process; `failure` is the reason, if known on this one."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


def together(task: str, step: Callable[[], Value]) -> Value:
    """Run a step on every process and return its result here, if it fails on none.

    Args:
        task: of the step.
        step: the function to call, without collectives.

    Raises:
        AllFailed: it failed, on this process or on another one.
    """
    failure: Exception | None = None
    try:
        value = step()
    except SystemExit as error:  # raised by task modules for a missing video
        failure = DataError(task, None, str(error), "complete the benchmark's files")
        failure.__cause__ = error
    except Exception as error:  # noqa: BLE001 - raised as soon as all know
        failure = error
    messages = gathered(None if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise AllFailed(failure) from failure
    for rank, words in enumerate(messages):
        if words is not None:
            raise AllFailed(DataError(f"rank {rank}", None, words))
    return value


@contextmanager
def answering_together(lm: SparseChatModel, task: str) -> Iterator[None]:
    """A context in which no process leaves `lm.generate_until` before all have finished.

    lmms-eval's own synchronisation, with a timeout of minutes, then starts on all at once.
    """
    answer = lm.generate_until

    def all_answer(requests: list[Any]) -> Any:
        return together(task, lambda: answer(requests))

    lm.generate_until = all_answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        lm.generate_until = answer  # type: ignore[method-assign]
