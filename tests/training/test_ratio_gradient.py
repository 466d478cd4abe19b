"""The benchmark that compares the loss's gradient with the token ratio's."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import Log, first_batch, parameters

from sf.data.manifest import Row
from sf.progress import Progress
from sf.training.run import assemble


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("ratio_gradient")


@pytest.fixture
def trainer(base: Path, rows: list[Row], tmp_path: Path) -> Any:
    p = parameters(retention_p=[0.3, 0.5, 0.7, 0.9])
    return assemble(p, base, rows, tmp_path, Log(), Progress("t", 1)).trainer


def test_the_gradient_is_the_ratios(script: Any, trainer: Any) -> None:
    """A small step against it lowers the mean ratio by the amount that its norm predicts."""
    inputs = first_batch(trainer)
    vector, before = script.of_effective_ratio(trainer, inputs)
    step = 1e-3 / float(vector.norm())
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.grad is not None:
                weight.sub_(step * weight.grad)
    _, after = script.of_effective_ratio(trainer, inputs)
    expected = step * float(vector.square().sum())
    assert float(before.mean() - after.mean()) == pytest.approx(expected, rel=0.1)
    assert expected > 1e-5


def test_figures_of_a_batch(script: Any, trainer: Any) -> None:
    measured = script.measure(trainer, 1)
    assert {name for name in measured if name.startswith("cosine")} == {
        "cosine with KL", "cosine without KL"
    }  # fmt: skip
    assert all(-1 <= value <= 1 for values in measured.values() for value in values)
    # The reward is 1 - token ratio, as no answer of an untrained model is right.
    assert measured["correlation of advantage and token ratio"] == pytest.approx(
        [-1.0] * 2, abs=1e-3
    )
    assert measured["cosine with KL"] != measured["cosine without KL"]


def test_groups_in_which_nothing_differs_are_left_out(script: Any) -> None:
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.0, 2.0, 1.0])
    values = torch.tensor([0.2, 0.4, 0.1, 0.9, 0.5, 0.5])
    assert script.within_groups(advantages, values, 2) == pytest.approx([-1.0])
