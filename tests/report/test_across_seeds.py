"""Objectives over training seeds, on curves with known figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_study
import numpy as np
import pandas as pd
import pytest

from sf.report.across_seeds import across_seeds, across_seeds_section, at_each_retention_p
from sf.report.build import build_report

BEFORE, AFTER = made_study.BEFORE, made_study.AFTER
WORSE = made_study.answers(
    dict(zip(made_study.GRID, (0.5, 0.65, 0.7, 0.8), strict=True)),
    dict(zip(made_study.GRID, (0.3, 0.55, 0.7, 1.0), strict=True)),
)


def lines(table: pd.DataFrame, row: str) -> pd.DataFrame:
    return table[table["row"] == row].reset_index(drop=True)


def test_the_base_model_against_itself_is_no_difference() -> None:
    table = across_seeds(BEFORE, {"same": [BEFORE, BEFORE]}, 0, (0.4, 0.7, 0.9))
    for row in ("base", "same"):
        own = lines(table, row)
        assert own["accuracy"].tolist() == pytest.approx([0.5, 0.8, 0.925], abs=0.01)
        assert np.allclose(own[["difference", "low", "high"]], 0.0)
        assert np.allclose(own["least"], own["most"])


def test_accuracy_is_read_off_both_curves_at_one_ratio() -> None:
    own = lines(across_seeds(BEFORE, {"x": [AFTER]}, 0, (0.1, 0.25, 0.6, 0.8)), "x")
    points = at_each_retention_p({"x": [AFTER], "base": [BEFORE]}).sort_values("token_ratio")
    after, before = (points[points["row"] == name] for name in ("x", "base"))
    for at, ratio in ((2, 0.6), (3, 0.8)):
        trained = np.interp(ratio, after["token_ratio"], after["accuracy"])
        base = np.interp(ratio, before["token_ratio"], before["accuracy"])
        assert own.loc[at, "accuracy"] == pytest.approx(trained)
        assert own.loc[at, "difference"] == pytest.approx(trained - base)
        assert own.loc[at, "low"] < trained - base < own.loc[at, "high"]
    assert own.loc[:1, ["accuracy", "difference"]].isna().all(axis=None)  # below its curve
    reverse = lines(across_seeds(AFTER, {"x": [BEFORE]}, 0, (0.25,)), "x")
    assert reverse["accuracy"].notna().all()
    assert reverse["difference"].isna().all()  # below the base model's curve


def test_seeds_give_mean_range_and_a_wider_interval() -> None:
    table = across_seeds(BEFORE, {"x": [AFTER, WORSE], "one": [AFTER], "other": [WORSE]}, 0, (0.6,))
    both, one, other = (lines(table, name).loc[0] for name in ("x", "one", "other"))
    assert both["seeds"] == 2
    assert both["accuracy"] == pytest.approx((one["accuracy"] + other["accuracy"]) / 2)
    assert (both["least"], both["most"]) == (other["accuracy"], one["accuracy"])
    assert both["difference"] == pytest.approx((one["difference"] + other["difference"]) / 2)
    width = both["high"] - both["low"]
    assert width > 1.5 * max(line["high"] - line["low"] for line in (one, other))
    assert both["low"] <= other["difference"] < one["difference"] <= both["high"]


def alike(accuracy: float) -> pd.DataFrame:
    """A model for which all questions are equally hard, so that only training seeds differ."""
    return BEFORE.assign(correct=accuracy)


@pytest.mark.parametrize("runs", [[AFTER], [alike(a) for a in (0.0, 0.13, 0.41, 0.77, 1.0)]])
def test_questions_and_training_seeds_are_drawn_by_the_seed(runs: list[pd.DataFrame]) -> None:
    base = BEFORE.assign(correct=0.5) if len(runs) > 1 else BEFORE
    drawn = [
        lines(across_seeds(base, {"x": runs}, seed, (0.6,)), "x").loc[0, ["low", "high"]].tolist()
        for seed in (0, 1, 2, 3, 0)
    ]
    assert drawn[0] == drawn[-1]
    assert not all(np.allclose(other, drawn[0]) for other in drawn)


def test_points_of_runs_stay_apart() -> None:
    points = at_each_retention_p({"x": [AFTER, WORSE], "base": [BEFORE]})
    assert points.groupby("row")["run"].unique().map(list).to_dict() == {"x": [0, 1], "base": [0]}
    last = points[(points["row"] == "x") & (points["run"] == 1) & (points["retention_p"] == 0.9)]
    assert last["accuracy"].tolist() == pytest.approx([0.65])


def test_a_report_of_several_seeds_has_the_section(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path / "results")
    assert across_seeds_section(study, tmp_path / "none") is None
    more = replace(study, seeds=(0, 1, 2), curve_methods=("temperature",))
    other = study.root / f"accuracy_curve/{made_study.MODEL}/temperature"
    made_study.write_curve(other, "calibrate", BEFORE, "heldout")
    folder = study.root / f"accuracy_curve/{made_study.MODEL}/sparsity_forcing"
    made_study.write_curve(folder / "seed1", "calibrate", WORSE, "heldout")
    base = study.root / f"accuracy_curve/{made_study.MODEL}/base"
    made_study.stamp(base, "calibrate", seed=5, split="heldout")
    build_report(more, "compare", tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "Objectives over training seeds" in text
    assert "outside the curve" in text
    row = next(line for line in text.splitlines() if line.startswith("| sparsity_forcing | 2 |"))
    assert "71.0 (62.0 to 80.0) (+11.0," in row.split("|")[6]  # at half of the tokens
    ratio, full = row.split("|")[8:10]
    assert "70.0 (69." in ratio or "70.0 (70." in ratio  # both runs' ratio at p = 0.975
    assert "86.5 (80.0 to 93.0)" in full
    assert any(line.startswith("| temperature |  |") for line in text.splitlines())
    table = pd.read_csv(tmp_path / "report/tables/across_seeds.csv")
    assert set(table["row"]) == {"base", "sparsity_forcing", "temperature"}
    runs = {"sparsity_forcing": [AFTER, WORSE]}
    by_hand = lines(across_seeds(BEFORE, runs, 5), "sparsity_forcing")
    own = lines(table, "sparsity_forcing")
    assert np.allclose(own[["low", "high"]], by_hand[["low", "high"]], equal_nan=True)
    for kind in ("png", "svg"):
        assert (tmp_path / f"report/figures/across_seeds_tiny.{kind}").stat().st_size > 5000
