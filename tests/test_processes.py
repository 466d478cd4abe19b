"""A map over forks of this process."""

from __future__ import annotations

import os

import pytest

from sf.errors import DataError
from sf.processes import map_processes


def described(number: int) -> tuple[int, int]:
    return number, os.getpid()


def refused(number: int) -> int:
    if number == 2:
        raise DataError("number", number, "is 2", "use another one")
    return number


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_are_in_the_items_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    finished: list[int] = []
    results = map_processes(described, range(count), finished.append)
    assert sorted(finished) == list(range(count))
    assert [number for number, _ in results] == list(range(count))
    assert (os.getpid() in {process for _, process in results}) == (count == 1)


def test_one_core_computes_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert map_processes(described, range(3)) == [(n, os.getpid()) for n in range(3)]


def test_an_error_of_an_item_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(DataError, match="is 2") as caught:
        map_processes(refused, range(4))
    assert (caught.value.field, caught.value.value) == ("number", 2)
