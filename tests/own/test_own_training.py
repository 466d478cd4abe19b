"""`sf train` on a user's model and questions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sf.errors import SparsityForcingError
from sf.mini.scenes import render, sample_scene
from sf.models import build_tiny
from sf.own import Inputs, Recipe, stages, training
from sf.own.training import train


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """A checkpoint and ten questions about ten pictures."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["question,answer,image"]
    for number in range(10):
        render(sample_scene(rng, rows=2, cols=3)).save(f"{number}.png")
        lines.append(f"What is it?,red,{number}.png")
    Path("q.csv").write_text("\n".join(lines))
    return Inputs("ckpt", Path("q.csv"), device="cpu")


def test_training_writes_a_checkpoint_and_measures_it_before_and_after(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in build_tiny("qwen2_5_vl", ["What is it? red"] * 3, seed=0):
        part.save_pretrained("ckpt")
    monkeypatch.setattr(training, "HELDOUT_SHARE", 0.5)  # both sides, whatever the bytes
    monkeypatch.setattr(training, "MEASURED_RETENTION_P", (0.9,))
    recipe = Recipe(0.25, steps=1, questions_per_step=1, max_new_tokens=2, learning_rate=1e-3)
    capsys.readouterr()
    trained = train(inputs, recipe)
    assert "%|" not in capsys.readouterr().err  # of transformers' bars
    record = json.loads((trained.checkpoint / "sparsity.json").read_text())
    assert record["provenance"]["objective"]["target_token_ratio"] == 0.25
    tables = [
        pd.read_csv(folder / "tables/summary.csv") for folder in (trained.before, trained.after)
    ]
    assert all(list(table["setting"]) == ["full", "zipvl 0.9"] for table in tables)
    stamps = [
        json.loads((folder / "stage.json").read_text())["inputs"]
        for folder in (trained.before, trained.after)
    ]
    assert stamps[0]["questions"] == stamps[1]["questions"]
    assert stamps[0]["checkpoint"] != stamps[1]["checkpoint"]
    times = [path.stat().st_mtime_ns for path in sorted(Path("results").rglob("stage.json"))]
    assert train(inputs, recipe) == trained
    again = [path.stat().st_mtime_ns for path in sorted(Path("results").rglob("stage.json"))]
    assert again == times


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"target_token_ratio": 1.5}, "target-token-ratio = 1.5"),
        ({"target_token_ratio": 0.0}, r"target-token-ratio = 0\.0.*in \(0, 1\)"),
        ({"steps": 0}, "train.steps"),
        ({"learning_rate": -1.0}, "train.learning_rate"),
        ({"lora_rank": -1}, "train.lora.rank"),
    ],
)
def test_bad_values_are_one_error_before_work(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, change: dict, named: str
) -> None:
    Path("ckpt").mkdir()
    for module in (stages, training):
        monkeypatch.setattr(module, "run_stage", lambda *_, **__: pytest.fail("a stage ran"))
    with pytest.raises(SparsityForcingError, match=named):
        train(inputs, Recipe(**{"target_token_ratio": 0.25, **change}))
