"""Which results a report reads, and what their stamps say."""

from __future__ import annotations

from pathlib import Path

import made_study
import pytest

from sf.report.results import Result, Study


def found(root: Path, seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    """Folders of what is finished, relative to the study."""
    study = Study(root, ("m",), ("full",), ("o",), ("image", "video"), seeds, ("temperature",))
    return [result.folder.relative_to(root).as_posix() for result in study.everything()]


EVERYTHING = [
    *("prepare", "benchmarks", "base/m", "calibrate/m"),
    *("train/m/o/seed0", "train/m/o/seed1"),
    *(
        "accuracy_curve/m/base",
        "accuracy_curve/m/temperature",
        "accuracy_curve/m/o/seed0",
        "accuracy_curve/m/o/seed1",
    ),
    *("evaluate/m/full/image", "evaluate/m/full/video"),
    *("evaluate/m/o/seed0/image", "evaluate/m/o/seed0/video"),
    *("evaluate/m/o/seed1/image", "evaluate/m/o/seed1/video"),
    "profile/m",
]


def test_every_finished_result_is_read_in_the_order_of_the_stages(tmp_path: Path) -> None:
    for name in reversed(EVERYTHING):
        made_study.stamp(tmp_path / name, "stage")
    assert found(tmp_path) == EVERYTHING
    assert found(tmp_path, (1,)) == [name for name in EVERYTHING if "seed0" not in name]


@pytest.mark.parametrize("missing", EVERYTHING)
def test_what_is_not_finished_is_left_out(tmp_path: Path, missing: str) -> None:
    for name in EVERYTHING:
        made_study.stamp(tmp_path / name, "stage")
    (tmp_path / missing / "stage.json").unlink()
    assert found(tmp_path) == [name for name in EVERYTHING if name != missing]


def test_a_result_is_named_by_key_and_commit() -> None:
    stamp = {"key": "0123456789", "commit": "abcdefghij", "parameters": {"seed": 3}}
    clean, changed = (Result("k", {}, Path(), {**stamp, "dirty": dirty}) for dirty in (False, True))
    assert (clean.run, clean.commit, changed.commit) == ("01234567", "abcdefg", "abcdefg+")
    assert clean.parameters == {"seed": 3}


def test_what_says_no_seed_means_the_first_one(tmp_path: Path) -> None:
    study = Study(tmp_path, ("m",), ("full",), ("o",), ("image",), (4, 5))
    folder = study.folder("accuracy_curve", model="m", row="o")
    assert folder == tmp_path / "accuracy_curve/m/o/seed4"
    assert study.folder("train", model="m", objective="o", seed="5") == tmp_path / "train/m/o/seed5"
    made_study.stamp(folder, "stage")
    made_study.stamp(tmp_path / "accuracy_curve/m/o/seed5", "stage")
    first, second = (
        study.result("accuracy_curve", model="m", row="o", seed=seed) for seed in ("4", "5")
    )
    assert first is not None
    assert second is not None
    assert study.shown(first)
    assert not study.shown(second)


def test_a_study_without_suites_misses_no_benchmarks(tmp_path: Path) -> None:
    missing = Study(tmp_path, ("m",), ("full",), (), (), (0,)).missing()
    assert missing
    assert not [name for name in missing if name.startswith(("benchmarks", "evaluate"))]


def test_rows_that_a_model_lacks_are_not_missing(tmp_path: Path) -> None:
    axes = ("m", "n"), ("full", "fastv"), ("o",), ("image",)
    every = Study(tmp_path, *axes).missing()
    less = Study(tmp_path, *axes, without={"n": ["fastv", "o"]}).missing()
    gone = set(every) - set(less)
    assert set(less) < set(every)
    assert gone == {
        "train/n/o/seed0",
        "accuracy_curve/n/o/seed0",
        "evaluate/n/o/seed0/image",
        "evaluate/n/fastv/image",
    }
