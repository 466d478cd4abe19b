"""The weight of the sparsity term over a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_world import parameters

from sf.training.checkpoints import PARTS, SealCheckpoints, last_sealed
from sf.training.sparsity_weight import PathwiseWeight


def weighting(steps: int = 4, **changes: Any) -> PathwiseWeight:
    if "target" in changes:
        ratio, rate = changes["target"], changes.pop("dual_rate", 20.0)
        changes["target"] = {"token_ratio": ratio, "dual_rate": rate} if ratio else None
    return PathwiseWeight.of(parameters(objective="pathwise", steps=steps, pathwise=changes))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [2.0] * 4), ("rising", [0.5, 1.0, 1.5, 2.0]), ("falling", [2.0, 1.5, 1.0, 0.5])],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    own = weighting(weight=2.0, schedule=schedule)
    assert [own.advance(step, 0.5) for step in range(4)] == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("even", [1 / 3] * 3), ("deeper", [1 / 6, 2 / 6, 3 / 6]), ("fuller", [0.2, 0.3, 0.5])],
)
def test_shares_of_the_layers(layers: str, expected: list[float]) -> None:
    shares = weighting(layers=layers).shares(torch.tensor([0.2, 0.3, 0.5]))
    assert torch.allclose(shares, torch.tensor(expected))


def test_gate() -> None:
    correct = torch.tensor([1.0, 0.0])
    assert weighting(gate=True).counted(correct).tolist() == [1.0, 0.0]
    assert weighting(gate=False).counted(correct).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("steps", [100, 3000])
@pytest.mark.parametrize("start", [0.5, 1.0, 6.0])
def test_target_is_reached_whatever_the_weight_begins_with(start: float, steps: int) -> None:
    """A system whose ratio follows 1 / (1 + weight), with a lag of a seventh of the run.

    25 % is weight 3.
    """
    own, ratio, ratios = weighting(steps, target=0.25, weight=start), 0.9, []
    for step in range(steps):
        ratio += (1 / (1 + own.advance(step, ratio)) - ratio) / (steps / 7)
        ratios.append(ratio)
    assert ratios[-1] == pytest.approx(0.25, abs=0.03)
    assert min(ratios) > 0.225, "it must not fall through the target"


def test_target_that_is_out_of_reach_does_not_leave_the_term_alone() -> None:
    """The dual variable stays within a factor of 32 of its initial value."""
    up, down = weighting(target=0.1, weight=2.0), weighting(target=0.9, weight=2.0)
    for step in range(200):
        up.advance(step, 0.9)
        down.advance(step, 0.1)
    assert (up.dual, down.dual) == (64.0, 2.0 / 32)


@pytest.mark.parametrize(
    ("ratio", "share"),
    [(0.9, 1.0), (0.36, 1.0), (0.3, 0.5), (0.275, 0.25), (0.25, 0.0), (0.1, 0.0)],
)
def test_weight_fades_towards_the_target(ratio: float, share: float) -> None:
    own = weighting(target=0.25, weight=4.0)
    assert own.advance(0, ratio) == pytest.approx(share * own.dual)
    assert (own.dual > 4.0) is (ratio > 0.25)


def test_dual_variable_moves_by_the_ratios_logarithm() -> None:
    """Over a whole run at twice the target it is multiplied by 2 ** dual_rate."""
    for steps in (4, 40):
        own = weighting(steps, target=0.25, dual_rate=3.0)
        for step in range(steps):
            own.advance(step, 0.5)
        assert own.dual == pytest.approx(8.0)


def test_ratio_is_that_of_the_level_that_keeps_most() -> None:
    rollouts = {
        "retention_p": torch.tensor([0.5, 0.975, 0.5, 0.975]),
        "token_ratio": torch.tensor([0.1, 0.4, 0.2, 0.6]),
        "token_ratio_layer/0": torch.tensor([0.1, 0.2, 0.3, 0.4]),
        "token_ratio_layer/1": torch.tensor([0.5, 0.5, 0.5, 0.5]),
    }
    weight, ratio, shares = weighting(layers="fuller").of_step(0, rollouts, 0.975)
    assert (weight, ratio) == (1.0, pytest.approx(0.5))
    assert torch.allclose(shares, torch.tensor([1 / 3, 2 / 3]))
    assert weighting().of_step(0, rollouts, 0.1 + 0.4)[1] == pytest.approx(0.15)
    assert weighting().of_step(0, rollouts, None)[1] == pytest.approx(0.325)


def test_dual_variable_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    own = weighting(target=0.25)
    own.advance(0, 0.9)
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=1)
    saving = SealCheckpoints({"pathwise": own})
    saving.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    assert last_sealed(tmp_path) == folder
    again = weighting(target=0.25)
    assert again.dual != own.dual
    SealCheckpoints({"pathwise": again}).restore(folder)
    assert again.dual == own.dual
    content = json.loads((folder / PARTS).read_text())
    (folder / PARTS).write_text(json.dumps(content | {"pathwise": {"dual": 9.0}}))
    with pytest.warns(UserWarning, match="damaged"):
        assert last_sealed(tmp_path) is None
