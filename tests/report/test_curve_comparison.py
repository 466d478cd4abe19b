"""Before and after training at equal token ratio."""

from __future__ import annotations

import made_study
import numpy as np
import pandas as pd
import pytest

from sf.errors import DataError
from sf.report.curve_comparison import at_matched_ratio, at_retention_p, points_above


def test_points_are_compared_at_their_own_ratio() -> None:
    table = at_matched_ratio(made_study.BEFORE, made_study.AFTER, seed=0).set_index("retention_p")
    # Base: 30 % at ratio 0.2, 70 % at 0.6, 90 % at 0.8; the noise is the same for all points.
    assert table.loc[0.5, "base_accuracy"] == pytest.approx(0.4, abs=1e-6)
    assert table.loc[0.9, "base_accuracy"] == pytest.approx(0.65, abs=1e-6)
    assert table.loc[0.975, "base_accuracy"] == pytest.approx(0.8, abs=1e-6)
    assert table.loc[0.5, "difference"] == pytest.approx(0.2, abs=1e-6)
    assert list(table["verdict"]) == ["above"] * 3
    assert points_above(table.reset_index()) == 3
    assert 1.0 not in table.index


def test_the_interval_is_paired_over_rows() -> None:
    line = (
        at_matched_ratio(made_study.BEFORE, made_study.AFTER, seed=0)
        .set_index("retention_p")
        .loc[0.9]
    )
    assert line["low"] < line["difference"] < line["high"]
    # Rows that both get right drop out: of 200 rows some 20 % differ.
    spread = (line["high"] - line["low"]) / (2 * 1.96)
    assert spread == pytest.approx(np.sqrt(0.2 * 0.8 / 200), rel=0.25)


def test_equal_models_do_not_differ() -> None:
    table = at_matched_ratio(made_study.BEFORE, made_study.BEFORE, seed=0)
    assert set(table["verdict"]) == {"no difference"}
    assert table["difference"].abs().max() < 1e-12
    assert (table["high"] - table["low"]).abs().max() < 1e-12  # paired: what is equal drops out
    assert points_above(table) == 0


def test_one_more_right_answer_is_no_difference() -> None:
    better = made_study.BEFORE.copy()
    better.loc[(better["retention_p"] == 0.9) & (better["id"] == "140"), "correct"] = 1.0
    table = at_matched_ratio(made_study.BEFORE, better, seed=0).set_index("retention_p")
    assert table.loc[0.9, "difference"] == pytest.approx(0.005)
    assert table.loc[0.9, "high"] > 0
    assert table.loc[0.9, "verdict"] == "no difference"


def test_a_worse_model_is_below() -> None:
    table = at_matched_ratio(made_study.AFTER, made_study.BEFORE, seed=0)
    assert "below" in set(table["verdict"])
    assert points_above(table) == 0


def test_nothing_is_extrapolated() -> None:
    lower = made_study.AFTER.assign(
        token_ratio=lambda t: t["token_ratio"].where(
            t["retention_p"] != 0.5, t["token_ratio"] - 0.2
        )
    )
    table = at_matched_ratio(made_study.BEFORE, lower, seed=0).set_index("retention_p")
    assert table.loc[0.5, "verdict"] == "outside"
    assert np.isnan(table.loc[0.5, "difference"])


def test_other_rows_are_refused() -> None:
    part = made_study.AFTER[made_study.AFTER["id"] != "7"]
    with pytest.raises(DataError, match="same rows"):
        at_matched_ratio(made_study.BEFORE, part, seed=0)


def test_a_fixed_threshold_before_and_after() -> None:
    differences = at_retention_p(made_study.BEFORE, made_study.AFTER, 0.975, seed=0)
    assert differences is not None
    assert differences["token_ratio"].change == pytest.approx(-0.1)
    assert differences["token_ratio"].low == pytest.approx(-0.1)  # the same shift in every row
    assert differences["accuracy"].before == differences["accuracy"].after == pytest.approx(0.9)
    assert at_retention_p(made_study.BEFORE, made_study.AFTER, 0.7, seed=0) is None


def test_the_order_of_rows_means_nothing() -> None:
    mixed = made_study.AFTER.sample(frac=1.0, random_state=0)
    pd.testing.assert_frame_equal(
        at_matched_ratio(made_study.BEFORE, made_study.AFTER, seed=0),
        at_matched_ratio(made_study.BEFORE, mixed, seed=0),
    )
