"""The search for a hyperparameter's value: against known curves, and on tiny models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from picture_rows import picture_row

from sf.baselines import Hyperparameter
from sf.config import Vision
from sf.data.manifest import Row
from sf.errors import ConfigError
from sf.evaluation.answer import Answer, answer_rows
from sf.evaluation.match_token_ratio import MOST, find_value, match_method, match_table
from sf.evaluation.resumable_log import ResumableLog
from sf.mini.scenes import render, sample_scene
from sf.models import load_model, load_processor
from sf.selection import TopP

VISION = Vision(
    image_min_pixels=784,
    image_max_pixels=36 * 784,
    video_min_pixels=784,
    video_max_pixels=784,
    video_max_frames=4,
    video_fps=1.0,
)
SHARE = Hyperparameter("ratio", 0.25, dense=1.0)
TOP_P = Hyperparameter("retention_p", 0.975, dense=1.0)
THRESHOLD = Hyperparameter("threshold", 0.001, low_allowed=True, rises=False, dense=0.0)
WARM = Hyperparameter("temperature", 0.5)
BLOCKS = Hyperparameter("top_k", 0, high=65536, low_allowed=True, whole=True)

CURVES = [
    (SHARE, lambda x: x),
    (TOP_P, lambda x: x**8),
    (TOP_P, lambda x: 1.0 if x == 1 else 0.9 * x),
    (THRESHOLD, lambda x: math.exp(-300 * x)),
    (THRESHOLD, lambda x: 1 / (1 + 1e5 * x)),
    (WARM, lambda x: 0.1 + 0.8 * x),
    (BLOCKS, lambda x: x / (x + 40)),
]


@pytest.mark.parametrize("target", [0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize(("hyperparameter", "curve"), CURVES)
def test_the_target_ratio_is_found_within_few_measurements(
    hyperparameter: Hyperparameter, curve: Any, target: float
) -> None:
    tried: list[float] = []

    def measure(value: float) -> float:
        hyperparameter.check(value)
        tried.append(value)
        return float(curve(value))

    match = find_value(hyperparameter, measure, target, tolerance=0.01)
    assert match.reached
    assert abs(match.ratio - target) <= 0.01
    assert match.ratio == curve(match.value)
    assert len(tried) == len(set(tried)) == len(match.probes) < MOST


@pytest.mark.parametrize(
    ("hyperparameter", "curve", "target", "nearest"),
    [
        (WARM, lambda x: 0.5 + 0.2 * x, 0.9, 1.0),  # the end of the range is tried itself
        (THRESHOLD, lambda x: max(0.3, 1 - x), 0.1, None),
        (SHARE, lambda x: 0.6 + 0.4 * x, 0.2, None),  # FastV's dense layers
        (BLOCKS, lambda x: 0.4 + x / 1e6, 0.2, 1.0),
        (TOP_P, lambda x: 0.3 if x < 0.7 else 0.9, 0.5, None),  # a step
    ],
)
def test_what_cannot_be_reached_is_said_with_the_nearest_value(
    hyperparameter: Hyperparameter, curve: Any, target: float, nearest: float | None
) -> None:
    match = find_value(hyperparameter, curve, target)
    assert not match.reached
    assert len(match.probes) <= MOST
    assert (
        match.ratio
        == curve(match.value)
        == min((ratio for _, ratio in match.probes), key=lambda ratio: abs(ratio - target))
    )
    if nearest is not None:
        assert match.value == nearest


def test_dense_is_not_searched_for() -> None:
    match = find_value(TOP_P, lambda x: 1.0 if x == 1 else 0.5, 1.0)
    assert match.probes == ((1.0, 1.0),)


@pytest.mark.parametrize(
    ("target", "tolerance", "field"),
    [(0.0, 0.01, "match.token_ratio"), (0.5, 0.0, "match.tolerance")],
)
def test_bad_demands_are_refused(target: float, tolerance: float, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        find_value(SHARE, lambda x: x, target, tolerance=tolerance)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Four images."""
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(2)
    for at in range(4):
        render(sample_scene(rng, rows=5, cols=6)).save(folder / f"{at}.png")
    return [picture_row(folder, f"{at}.png") for at in range(4)]


@pytest.mark.parametrize("method", ["zipvl", "top_k", "threshold"])
def test_methods_are_matched_on_a_model_and_a_kill_costs_nothing(
    checkpoints: dict[str, Path], rows: list[Row], tmp_path: Path, method: str
) -> None:
    model, processor = (
        load_model(checkpoints["qwen2_5_vl"]),
        load_processor(checkpoints["qwen2_5_vl"]),
    )
    log = tmp_path / "log.jsonl"

    def run() -> Any:
        return match_method(
            model,
            processor,
            rows,
            VISION,
            method,
            0.8,
            ResumableLog(Answer, log),
            tolerance=0.02,
            batch=4,
            max_new_tokens=2,
        )

    match, probes = run()
    assert match.reached
    assert list(probes["value"]) == [value for value, _ in match.probes]
    if method == "zipvl":
        policy = TopP(p=match.value)
        answers = answer_rows(model, processor, rows, VISION, policy, max_new_tokens=2)
        own = sum(answer.token_ratio for answer in answers) / len(answers)
        assert own == pytest.approx(match.ratio, abs=1e-6)
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 4 * len(probes)
    log.write_text("".join(lines[:2]) + lines[2][:20])
    again, table = run()
    assert again == match
    pd.testing.assert_frame_equal(table, probes)
    (line,) = match_table(method, match, probes).to_dict("records")
    assert (line["value"], line["reached"], line["rows"]) == (match.value, True, 4)


def test_a_floor_is_noticed(checkpoints: dict[str, Path], rows: list[Row], tmp_path: Path) -> None:
    """FastV's first two of three layers are dense."""
    path = checkpoints["qwen2_5_vl"]
    settings: dict[str, Any] = {"tolerance": 0.02, "batch": 4, "max_new_tokens": 1}
    log = ResumableLog(Answer, tmp_path / "log")
    model, processor = load_model(path), load_processor(path)
    match, probes = match_method(model, processor, rows, VISION, "fastv", 0.5, log, **settings)
    assert not match.reached
    assert match.ratio > 2 / 3
    assert len(probes) < MOST
    assert not match_table("fastv", match, probes)["reached"].any()


def test_a_method_without_a_hyperparameter_cannot_be_matched(
    rows: list[Row], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"tolerance": 0.01, "batch": 1, "max_new_tokens": 1}
    with pytest.raises(ConfigError, match="no hyperparameter"):
        match_method(
            None,
            None,
            rows,
            VISION,
            "full",
            0.5,
            ResumableLog(Answer, tmp_path / "log"),
            **settings,
        )
