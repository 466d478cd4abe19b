"""The report's first part: figures, and what its bootstrap depends on."""

from __future__ import annotations

from pathlib import Path

import made_study
import pandas as pd
import pytest

from sf.report.before_after import before_after
from sf.report.curve_comparison import at_matched_ratio, at_retention_p

BEFORE, AFTER = made_study.BEFORE, made_study.AFTER


@pytest.mark.parametrize("seed", [0, 7])
def test_the_intervals_are_those_of_the_curves_seed(tmp_path: Path, seed: int) -> None:
    study = made_study.write_study(tmp_path / "results")
    made_study.stamp(study.folder("accuracy_curve", model="tiny", row="base"), "calibrate",
                     seed=seed, split="heldout")  # fmt: skip
    report = before_after(study, tmp_path / "report")
    written = pd.read_csv(tmp_path / "report/tables/equal_token_ratio.csv")
    expected = at_matched_ratio(BEFORE, AFTER, seed)
    pd.testing.assert_frame_equal(written[expected.columns], expected)
    assert not expected.equals(at_matched_ratio(BEFORE, AFTER, seed + 1))
    fixed, dense = (at_retention_p(BEFORE, AFTER, value, seed) for value in (0.975, 1.0))
    assert fixed is not None
    assert dense is not None
    shown = [row[3].interval for row in report.sections[0].tables[0].rows[:3]]
    assert shown == [
        f"{100 * each.low:+.1f} to {100 * each.high:+.1f}"
        for each in (dense["accuracy"], fixed["accuracy"], fixed["token_ratio"])
    ]
    assert (
        report.figures["tiny/sparsity_forcing/fixed_retention_p_accuracy_before"]
        == fixed["accuracy"].before
    )
    assert (
        report.figures["tiny/sparsity_forcing/fixed_retention_p_accuracy_after"]
        == fixed["accuracy"].after
    )
