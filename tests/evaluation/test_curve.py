"""The p -> ratio -> accuracy curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from picture_rows import picture_row
from scipy.stats import binomtest

from sf.baselines import resolve_point
from sf.config import Vision
from sf.data.manifest import Row
from sf.errors import ConfigError
from sf.evaluation.answer import Answer
from sf.evaluation.curve import answers_at, curve_table, grid_with_dense, layer_table
from sf.evaluation.intervals import bootstrap_clusters, bootstrap_mean, wilson
from sf.evaluation.resumable_log import ResumableLog
from sf.mini.scenes import render, sample_scene
from sf.models import load_model, load_processor

VISION = Vision(
    image_min_pixels=784,
    image_max_pixels=12 * 784,
    video_min_pixels=784,
    video_max_pixels=784,
    video_max_frames=4,
    video_fps=1.0,
)
GRID = [0.5, 0.9, 1.0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Five images."""
    folder, rng, made = tmp_path_factory.mktemp("rows"), np.random.default_rng(2), []
    for at in range(5):
        scene = sample_scene(rng, rows=3, cols=3, objects=(1, 1))
        render(scene).save(folder / f"{at}.png")
        made.append(picture_row(folder, f"{at}.png"))
    return made


def measure(checkpoint: Path, rows: list[Row], log: Path) -> pd.DataFrame:
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    return answers_at(
        model, processor, rows, VISION, GRID, ResumableLog(Answer, log), batch=2, max_new_tokens=3
    )


def test_every_row_is_answered_at_every_p(
    checkpoints: dict[str, Path], rows: list[Row], tmp_path: Path
) -> None:
    answers = measure(checkpoints["qwen2_5_vl"], rows, tmp_path / "a.jsonl")
    assert list(answers["retention_p"]) == [p for p in GRID for _ in rows]
    assert list(answers["id"]) == [row.id for _ in GRID for row in rows]
    ratios = answers.pivot(index="id", columns="retention_p", values="token_ratio")
    assert (ratios[0.5] < ratios[0.9]).all()
    assert (ratios[1.0] == 1.0).all()


def test_a_killed_run_goes_on_and_ends_with_the_same_table(
    checkpoints: dict[str, Path], rows: list[Row], tmp_path: Path
) -> None:
    log = tmp_path / "a.jsonl"
    whole = measure(checkpoints["qwen2_5_vl"], rows, log)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:7]) + lines[7][:20])
    again = measure(checkpoints["qwen2_5_vl"], rows, log)
    pd.testing.assert_frame_equal(
        whole.drop(columns="seconds"), again.drop(columns="seconds"), rtol=1e-5
    )
    kept = log.read_text().splitlines(keepends=True)
    assert kept[:7] == lines[:7]
    assert len(kept) == len(lines)  # what was there is not answered twice


def test_the_grid_is_sorted_and_holds_dense() -> None:
    assert grid_with_dense([0.9, 0.5, 0.9]) == [0.5, 0.9, 1.0]
    assert grid_with_dense([0.3, 0.1 + 0.2, 0.97512345]) == [0.3, 0.975123, 1.0]


def frame() -> pd.DataFrame:
    """Two images and one video at two thresholds."""
    kinds, right, ratios = ["image", "image", "video"], [1.0, 0.0, 1.0], [0.2, 0.4, 0.6]
    return pd.DataFrame(
        [
            {
                "retention_p": p,
                "id": str(at),
                "data_type": kinds[at],
                "correct": right[at],
                "token_ratio": ratios[at] * p,
                "layer_ratios": (ratios[at] * p - 0.1, ratios[at] * p + 0.1),
                "prompt_tokens": 10 * (at + 1),
                "seconds": 1.0,
            }
            for p in (0.5, 1.0)
            for at in range(3)
        ]
    )


def test_a_curve_has_points_overall_and_per_media_type() -> None:
    curve = curve_table(frame(), seed=0).set_index(["media", "retention_p"])
    overall = curve.loc[("all", 0.5)]
    assert overall["accuracy"] == pytest.approx(2 / 3)
    assert overall["token_ratio"] == pytest.approx(0.2)
    assert overall["prompt_tokens"] == 20
    assert overall["samples"] == 3
    assert overall["seconds"] == 3
    assert curve.loc[("image", 1.0), "accuracy"] == 0.5
    assert curve.loc[("video", 1.0), "token_ratio"] == pytest.approx(0.6)
    assert overall["ratio_low"] < 0.2 < overall["ratio_high"]
    assert np.isnan(curve.loc[("video", 1.0), "ratio_low"])  # one sample has no interval


def test_all_right_is_not_certain() -> None:
    """Accuracy has Wilson's interval, a token ratio that of a bootstrap over rows."""
    point = curve_table(frame().assign(correct=1.0), seed=0).set_index(["media", "retention_p"])
    overall = point.loc[("all", 0.5)]
    assert (overall["accuracy"], overall["high"]) == (1.0, 1.0)
    assert overall["low"] == pytest.approx(binomtest(3, 3).proportion_ci(method="wilson").low)
    assert (overall["ratio_low"], overall["ratio_high"]) == pytest.approx((0.1, 0.3))


def test_layers_have_their_own_ratios() -> None:
    layers = layer_table(frame(), seed=0).set_index(["retention_p", "layer"])["token_ratio"]
    assert layers[(1.0, 0)] == pytest.approx(0.3)
    assert layers[(1.0, 1)] == pytest.approx(0.5)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (8, 10), (137, 400), (1, 1)])
def test_wilson_agrees_with_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_intervals_are_those_of_the_seed() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.random(40)
    table = pd.DataFrame(
        {
            "retention_p": 0.5, "data_type": "image", "correct": 1.0, "token_ratio": ratios,
            "layer_ratios": [(ratio, ratio / 2) for ratio in ratios], "prompt_tokens": 9,
            "seconds": 0.0,
        }
    )  # fmt: skip
    for seed in (0, 5):
        bounds = bootstrap_mean(ratios, seed)
        assert tuple(curve_table(table, seed).loc[0, ["ratio_low", "ratio_high"]]) == bounds
        assert tuple(layer_table(table, seed).loc[0, ["low", "high"]]) == bounds
    assert bootstrap_mean(ratios, 0) != bootstrap_mean(ratios, 5)


def test_clusters_count_by_their_samples() -> None:
    """A cluster of one right and one of nine wrong: most often both are drawn, 0.1."""
    values, owner = [1.0] + [0.0] * 9, ["a"] + ["b"] * 9
    assert bootstrap_clusters(values, owner, seed=0, level=0.4) == pytest.approx((0.1, 0.1))


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_a_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_mean(rng.normal(size=60), seed=1)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.98
    assert all(np.isnan(bound) for bound in bootstrap_mean([1.0], seed=0))


def test_a_curve_of_another_method_with_a_threshold(
    checkpoints: dict[str, Path], rows: list[Row], tmp_path: Path
) -> None:
    model, processor = (
        load_model(checkpoints["qwen2_5_vl"]),
        load_processor(checkpoints["qwen2_5_vl"]),
    )
    given: tuple[Any, ...] = (model, processor, rows[:2], VISION)
    tables = {
        name: answers_at(
            *given,
            [0.9, 1.0],
            ResumableLog(Answer, tmp_path / name),
            batch=2,
            max_new_tokens=3,
            method=name,
        )
        for name in ("zipvl", "temperature")
    }
    ratios = {
        name: table.groupby("retention_p")["token_ratio"].mean() for name, table in tables.items()
    }
    assert ratios["temperature"][1.0] == ratios["zipvl"][1.0] == 1.0
    assert ratios["temperature"][0.9] < ratios["zipvl"][0.9]  # sharper rows


def test_a_method_without_a_threshold_has_no_curve() -> None:
    with pytest.raises(ConfigError, match=r"use zipvl or .*temperature"):
        resolve_point(None, 0.9, "fastv")
