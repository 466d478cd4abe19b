"""What a process does when it or another one fails; the other processes are simulated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sf.errors import DataError
from sf.evaluation import rank_sync as module
from sf.evaluation.rank_sync import AllFailed, answering_together, together


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The messages of ranks 1, 2, ... after that of this process, rank 0; fill it before a step."""
    other_ranks: list[str | None] = []
    monkeypatch.setattr(module, "gathered", lambda own: [own, *other_ranks])
    return other_ranks


def _fail() -> None:
    raise KeyError("row 7")


def _exit() -> None:
    raise SystemExit("video path:/a.mp4 does not exist")


def test_a_step_that_fails_nowhere_gives_what_it_gives(others: list[str | None]) -> None:
    others += [None, None]
    assert together("mme", lambda: 3) == 3


def test_a_failure_of_ones_own_is_kept_as_it_is(others: list[str | None]) -> None:
    others += [None]
    with pytest.raises(AllFailed) as caught:
        together("mme", _fail)
    assert isinstance(caught.value.failure, KeyError)


def test_a_failure_elsewhere_ends_the_step_here_too(others: list[str | None]) -> None:
    others += [None, "video = 'a.mp4'. it is damaged"]
    done = []
    with pytest.raises(AllFailed) as caught:
        together("mme", lambda: done.append(1))
    assert done == [1]
    assert isinstance(caught.value.failure, DataError)
    assert str(caught.value.failure) == "rank 2. video = 'a.mp4'. it is damaged."


def test_a_task_that_exits_is_an_error_with_its_words(others: list[str | None]) -> None:
    with pytest.raises(AllFailed) as caught:
        together("egoschema_subset", _exit)
    assert "egoschema_subset. video path:/a.mp4 does not exist" in str(caught.value.failure)


def test_a_failure_without_words_is_one(others: list[str | None], monkeypatch: Any) -> None:
    messages: list[Any] = []
    monkeypatch.setattr(module, "gathered", lambda own: messages.append(own) or [own])
    with pytest.raises(AllFailed):
        together("mme", lambda: (_ for _ in ()).throw(ValueError()))
    assert messages == ["ValueError"]


def test_answers_are_handed_out_when_all_have_theirs(others: list[str | None]) -> None:
    lm: Any = SimpleNamespace(generate_until=lambda requests: [r * 2 for r in requests])
    before = lm.generate_until
    with answering_together(lm, "mme"):
        assert lm.generate_until([1, 2]) == [2, 4]
        others += ["is full"]
        with pytest.raises(AllFailed, match="is full"):
            lm.generate_until([1, 2])
    assert lm.generate_until is before
    with pytest.raises(ZeroDivisionError), answering_together(lm, "mme"):
        raise ZeroDivisionError
    assert lm.generate_until is before
