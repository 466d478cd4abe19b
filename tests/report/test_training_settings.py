"""The sweep of training settings: its settings can be trained, its table shows the measurements."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from sf.provenance import ROOT


@pytest.fixture(scope="module")
def sweeping() -> Iterator[Any]:
    """The script as `python benchmarks/training_settings.py` runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("training_settings")


def test_every_setting_is_one_of_its_kind_and_can_be_trained(sweeping: Any) -> None:
    """The stage accepts their names and combinations; no two settings are the same run."""
    sweep = sweeping.Sweep("mini", 4, only_finished=True)
    rows = sweep.params.trained
    assert list(rows) == list(sweeping.SETTINGS)
    for row in rows.values():
        if hasattr(row.objective, "beta"):
            per_step = row.objective.group_size * row.train.questions_per_step
            assert per_step == 64, "the same number of rollouts for every setting"
    seen = list(rows.values())
    assert all(seen.count(row) == 1 for row in seen)
    assert sweeping.SETTINGS["default"].row == {}


def measured(sweeping: Any, right: dict[float, int], image: float) -> Any:
    """Ten questions, some of them right at each p; the token ratio is p / 2 for p below 1."""
    lines = [
        {
            "retention_p": p,
            "id": str(at),
            "token_ratio": p if p == 1 else p / 2,
            "correct": at < count,
        }
        for p, count in right.items()
        for at in range(10)
    ]
    return sweeping.Measured(pd.DataFrame(lines), image=image, video=50.0, stray=2.0)


def test_rows_are_means_and_ranges_of_the_seeds(sweeping: Any) -> None:
    base = measured(sweeping, {0.2: 1, 0.8: 7, 1.0: 9}, 80.0)
    runs = [measured(sweeping, {0.2: 2, 0.8: 8, 1.0: 9}, 70.0),
            measured(sweeping, {0.2: 4, 0.8: 8, 1.0: 10}, 74.0)]  # fmt: skip
    rows = {row.name: row for row in sweeping.rows_of("x", base, runs)}
    quarter = rows["x: at 25 %"]  # half-way between the ratios 0.1 and 0.4
    assert (quarter.value, quarter.low, quarter.high) == pytest.approx((55.0, 50.0, 60.0))
    assert sweeping.cell(rows["x: full attention"]) == "95.0 (90.0 to 100.0)"
    assert sweeping.cell(rows["x: ratio at the largest p"]) == "40.0"
    assert sweeping.cell(rows["x: image average"]) == "72.0 (70.0 to 74.0)"
    assert rows["x: stray tags"].better == rows["x: ratio at the largest p"].better == "lower"


def test_what_a_curve_does_not_reach_is_left_out(sweeping: Any) -> None:
    base = measured(sweeping, {0.2: 1, 0.8: 7, 1.0: 9}, 80.0)
    short = measured(sweeping, {0.4: 3, 0.8: 8, 1.0: 9}, 70.0)
    rows = [row.name for row in sweeping.rows_of("x", base, [short])]
    assert "x: at 15 %" not in rows
    assert "x: at 25 %" in rows


def test_the_picture_shows_every_length_and_the_model_before(sweeping: Any) -> None:
    base = measured(sweeping, {0.8: 7, 1.0: 9}, 80.0)
    runs = [measured(sweeping, {0.8: right, 1.0: 9}, 70.0) for right in (4, 8)]
    fig = sweeping.against_steps({"wide": {300: runs, 100: [base]}, "narrow": {100: runs}}, base)
    ratio, accuracy = fig.axes
    assert [text.get_text() for text in ratio.get_legend().get_texts()] == ["wide", "narrow"]
    drawn = [container.lines[0].get_xydata().tolist() for container in accuracy.containers]
    assert drawn == [[[0, 70], [100, 70], [300, 60]], [[0, 70], [100, 60]]]
    (bars,) = accuracy.containers[0].lines[2]
    assert bars.get_segments()[2].tolist() == [[300, 40], [300, 80]]


def test_the_papers_objective_is_trained_ten_times_as_long_with_both_ranges(sweeping: Any) -> None:
    trained = sweeping.Sweep("mini", 4, only_finished=True).params.trained
    lengths: dict[str, list[int]] = {}
    for name, setting in sweeping.SETTINGS.items():
        if setting.series:
            assert trained[name].objective.objective == "sparsity_forcing"
            lengths.setdefault(setting.series, []).append(trained[name].train.steps)
    assert list(lengths.values()) == [[100, 300, 1000]] * 2
