"""The rollouts' `retention_p`, and what the answers under them would cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_world import parameters
from transformers import Qwen2Config

from sf.selection import Probes, Threshold, TopK, TopP
from sf.training.latency import PEAK_BANDWIDTH, PEAK_FLOPS, LatencyModel
from sf.training.retention_schedule import RetentionSchedule

GRID = [0.94, 0.945, 0.95, 0.955, 0.96, 0.965, 0.97, 0.975]


def schedule(**changes: Any) -> RetentionSchedule:
    return RetentionSchedule.of(parameters(**{"group_size": 8, "retention_p": GRID, **changes}))


def test_published_grid_is_one_value_a_rollout() -> None:
    assert schedule()(7, range(8, 24)) == GRID + GRID


def test_larger_groups_take_the_grid_in_turn() -> None:
    given = schedule(group_size=4, retention_p=[0.5, 0.9])
    assert given(0, range(6)) == [0.5, 0.9, 0.5, 0.9, 0.5, 0.9]


def test_uniform_draws_depend_on_seed_step_and_place_alone() -> None:
    """Two ranks draw what one does, a later call what an earlier one did."""
    drawn = schedule(retention_p={"low": 0.0, "high": 1.0})
    whole = drawn(3, range(16))
    assert drawn(3, range(8)) + drawn(3, range(8, 16)) == whole
    assert len(set(whole)) == 16
    assert drawn(4, range(16)) != whole
    assert schedule(retention_p={"low": 0.0, "high": 1.0}, seed=4)(3, range(16)) != whole


def test_uniform_draws_are_uniform_and_never_zero() -> None:
    every = np.array(schedule(retention_p={"low": 0.0, "high": 1.0})(0, range(4000)))
    assert every.min() > 0
    assert every.max() <= 1
    assert np.abs(np.histogram(every, 10, (0, 1))[0] / 4000 - 0.1).max() < 0.02
    narrow = np.array(schedule(retention_p={"low": 0.4, "high": 0.6})(0, range(500)))
    assert 0.4 < narrow.min() < 0.41
    assert 0.59 < narrow.max() <= 0.6


@pytest.mark.parametrize(
    ("selector", "kind", "most"), [("top_p", TopP, 0.9), ("top_k", TopK, 0.9),
                                   ("threshold", Threshold, 0.1)]
)  # fmt: skip
def test_selector_of_table_four(selector: str, kind: type, most: float) -> None:
    given = schedule(rollout_selector=selector, group_size=2, retention_p=[0.9, 0.1])
    policy = given.policy(given(0, [0, 1]))
    assert type(policy) is kind
    assert given.densest == given.inference == most


def test_a_draw_may_be_the_upper_end_and_never_the_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """p = 0 would keep nothing; numpy draws from [0, 1)."""
    zero = SimpleNamespace(random=lambda: 0.0)
    monkeypatch.setattr("sf.training.retention_schedule.np.random.default_rng", lambda _: zero)
    assert schedule(retention_p={"low": 0.0, "high": 0.5})(0, [0, 1]) == [0.5, 0.5]


def test_inference_is_at_the_papers_p_where_training_reached_full_attention() -> None:
    assert schedule(retention_p={"low": 0.0, "high": 1.0}).inference == 0.975
    assert schedule(retention_p={"low": 0.1, "high": 0.5}).inference == 0.5
    assert schedule(group_size=2, retention_p=[0.9, 1.0]).inference == 0.9
    assert schedule(group_size=2, retention_p=[1.0]).inference == 0.975


TARGET: dict[str, Any] = {"pathwise": {"target": {"token_ratio": 0.25, "dual_rate": 20.0}}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"group_size": 6}, ("group_size 6", "multiple of the 4", "low, high")),
        ({"group_size": 1, "retention_p": [0.5]}, ("group_size 1", "2 or more")),
        ({"retention_p": {"low": 0.5, "high": 0.5}}, ("low 0.5", "not below")),
        (TARGET | {"retention_p": {"low": 0.0, "high": 1.0}}, ("pathwise.target", "list")),
        (TARGET | {"rollout_selector": "top_k"}, ("pathwise.target", "top_k")),
        ({"pathwise": {**TARGET["pathwise"], "schedule": "rising"}}, ("schedule constant",)),
        ({"pathwise": {**TARGET["pathwise"], "weight": 0.0}}, ("weight", "above 0")),
    ],
)
def test_parameters_that_do_not_fit(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        parameters("pathwise" if "pathwise" in changes else "sparsity_forcing", **changes)
    assert all(part in str(caught.value) for part in parts)


CONFIG = Qwen2Config(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=32,
)


class Model:
    config = CONFIG


def test_latency_is_the_sum_by_hand() -> None:
    """Two layers, hidden 8, 4 heads of 2, 2 KV heads, MLP 16, vocabulary 32; 10 tokens, 3 new."""
    weights = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16
    kept = [10, 4]
    flops = 2 * 10 * weights * 2 + 2 * 8 * 32
    flops += sum(4 * 8 * b * b / 2 for b in kept) + 2 * 2 * 8 * 10 * 10
    read = 2 * (2 * weights + 8 * 32 + sum((b + 1.5) * 2 * 4 for b in kept))
    model = LatencyModel.of(Model)
    seconds = model.seconds(
        torch.tensor([10]), torch.tensor([[10], [4]]), torch.tensor([3]), probed=True
    )
    assert float(seconds) == pytest.approx(flops / PEAK_FLOPS + 3 * read / PEAK_BANDWIDTH)


def test_latency_falls_with_the_kept_tokens_and_is_that_of_full_attention_at_one() -> None:
    model = LatencyModel(28, 230_000_000, 545_000_000, 3584, 512, Probes(0, 1))
    ratios = torch.tensor([[0.1, 0.5, 1.0]]).expand(28, -1)
    lengths, answers = torch.full((3,), 65_536), torch.full((3,), 256)
    few, half, every = model.ratio(lengths, ratios, answers).tolist()
    assert few < half < every
    assert every == pytest.approx(1.0, abs=1e-4)
    assert few < 0.6
    short = model.ratio(torch.full((3,), 1024), ratios, answers)
    assert short[0] > 0.95, "at 1k tokens weights dominate: nothing is saved"
