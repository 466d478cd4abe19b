"""Low-rank adapters: the reference is the base model, a resumed run and its merged checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import Log, parameters

from sf.data.manifest import Row
from sf.errors import ConfigError
from sf.models import load_model
from sf.training.run import train


@pytest.mark.parametrize("objective", ["sparsity_forcing", "zipvl_sft", "distil"])
def test_adapters_are_trained_resumed_and_merged(
    base: Path, rows: list[Row], tmp_path: Path, objective: str
) -> None:
    def run(folder: Path, steps: int) -> tuple[dict[str, torch.Tensor], Log]:
        # A dual variable moves by shares of the run, whose length is changed here.
        own = {"dual_rate": 0.0} if objective == "distil" else {}
        p = parameters(
            **own, objective=objective, steps=steps, lora={"rank": 4, "alpha": 8},
            lr_schedule="constant", learning_rate=1e-2,
        )  # fmt: skip
        log, note = Log(), {"model": "tiny", "objective": objective}
        train(p, base, rows, folder / "state", folder / "out", log, note)
        return load_model(folder / "out").state_dict(), log

    whole, log = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    again, _ = run(tmp_path / "parts", 4)
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
    start: dict[str, Any] = load_model(base).state_dict()
    assert start.keys() == whole.keys()
    moved = {name for name in start if not torch.equal(start[name], whole[name])}
    assert moved
    assert all("language_model" in name and "_proj.weight" in name for name in moved)
    figures = [values for _, values in log.history]
    if objective == "distil":
        assert figures[-1]["loss"] > 0  # from the model without its adapters
    if objective == "sparsity_forcing":
        assert figures[-1]["kl"] > 0  # against the model without its adapters
        assert max(values["logp_gap"] for values in figures) < 1e-4


def test_adapters_and_own_weights_do_not_go_together(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    p = parameters(objective="nsa", lora={"rank": 4, "alpha": 8})
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        train(p, base, rows, tmp_path / "state", tmp_path / "out", Log(), {})
