"""A change of any part of a key changes the key, and the difference names the part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sf.fields import Section
from sf.result_key.key import Change, Key, used_parameters

KEY = Key(
    stage="train",
    parameters={"beta": 0.04, "seed": 0},
    inputs={"base": "aa", "data": "bb"},
    code={"sf/training/trainer.py": "11"},
    packages={"torch": "2.13"},
)


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("parameters", {"beta": 0.1, "seed": 0}, "parameter beta: 0.04 → 0.1"),
        ("parameters", {"beta": 0.04}, "parameter seed: 0 → absent"),
        ("inputs", {"base": "ab", "data": "bb"}, "input base has other content"),
        ("inputs", {"base": "bb", "data": "aa"}, "input base has other content"),
        ("inputs", {"base": "aa"}, "input data is gone"),
        ("code", {"sf/training/trainer.py": "12"}, "code sf/training/trainer.py changed"),
        ("code", {**KEY.code, "sf/a.py": "1"}, "code sf/a.py is new"),
        ("packages", {"torch": "2.14"}, "package torch: 2.13 → 2.14"),
    ],
)
def test_a_changed_part_changes_the_key_and_is_named(
    part: str, value: dict[str, Any], reason: str
) -> None:
    changed = dataclasses.replace(KEY, **{part: value})
    assert changed.digest != KEY.digest
    assert str(changed.changes(KEY.record())[0]) == reason
    assert KEY.changes(KEY.record()) == []


def test_results_of_two_stages_have_two_keys() -> None:
    other = dataclasses.replace(KEY, stage="evaluate")
    assert other.digest != KEY.digest
    assert other.changes(KEY.record())


@pytest.mark.parametrize("record", [{}, {"key": KEY.digest}, {**KEY.record(), "code": "11"}])
def test_a_record_without_parts_does_not_hold(record: dict[str, Any]) -> None:
    changes = KEY.changes(record)
    assert [change.kind for change in changes] == ["record"]


def test_paths_count_by_what_lies_there() -> None:
    class Parameters(Section):
        beta: float
        data: Path
        benchmarks: Path | None = None
        output: Path

    one = Parameters(beta=0.1, data=Path("a"), output=Path("b"))
    other = Parameters(beta=0.1, data=Path("/elsewhere/a"), output=Path("c"))
    assert used_parameters(one) == used_parameters(other) == {"beta": 0.1, "benchmarks": None}


def test_a_change_is_a_sentence() -> None:
    change = Change("file", "model.safetensors", new="is missing or has other bytes")
    assert str(change) == "file model.safetensors is missing or has other bytes"
