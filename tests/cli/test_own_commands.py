"""Options of `sf evaluate` and `sf train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sf.cli import app
from sf.cli.own import separated
from sf.own import Comparison, Inputs, Recipe
from sf.own.training import Trained


def test_values_of_an_option_may_follow_each_other() -> None:
    words = ["evaluate", "--p", "0.9", "0.975", "--methods", "zipvl", "random", "--batch", "4"]
    apart = ["evaluate", "--p", "0.9", "--p", "0.975", "--methods", "zipvl", "--methods", "random"]
    assert separated(words) == [*apart, "--batch", "4"]
    assert separated(["ask", "--p", "0.9", "--full"]) == ["ask", "--p", "0.9", "--full"]


def test_options_arrive_in_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def evaluate(*given: Any, **_: Any) -> Path:
        calls.extend(given)
        return Path("result")

    def train(*given: Any, **_: Any) -> Trained:
        calls.extend(given)
        return Trained(Path("model"), Path("before"), Path("after"))

    monkeypatch.setattr("sf.own.evaluation.evaluate", evaluate)
    monkeypatch.setattr("sf.own.training.train", train)
    monkeypatch.setattr("sf.cli.own._summary", str)
    words = ["--model", "ckpt", "--questions", "q.csv", "--fps", "1"]
    sparse = ["--p", "0.9", "--p", "0.5", "--cutoff", "0.7"]
    shown = CliRunner().invoke(app, ["evaluate", *words, *sparse])
    assert shown.exit_code == 0, shown.output
    shown = CliRunner().invoke(app, ["train", *words, "--target-token-ratio", "0.25"])
    assert shown.exit_code == 0, shown.output
    inputs = Inputs("ckpt", Path("q.csv"), fps=1.0)
    assert calls == [inputs, Comparison(retention_p=[0.9, 0.5], cutoff=0.7), inputs, Recipe(0.25)]


def test_an_option_without_a_default_is_required() -> None:
    shown = CliRunner(env={"TERM": "dumb"}).invoke(app, ["train", "--model", "ckpt"])
    assert shown.exit_code == 2
    assert "--questions" in shown.output
