"""Whole training steps on images and videos mixed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import Log, first_batch, parameters

from sf.attention.trained import record_of
from sf.baselines import build as build_method
from sf.baselines import resolve
from sf.data.manifest import Row
from sf.errors import TrainingCollapse
from sf.models import load_model
from sf.progress import Progress
from sf.training.run import Training, assemble, train


def build(base: Path, rows: list[Row], folder: Path, **changes: Any) -> tuple[Training, Log]:
    p, log = parameters(**changes), Log()
    return assemble(p, base, rows, folder, log, Progress("t", p.train.steps)), log


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def first_step(base: Path, rows: list[Row], tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    """A trainer before its first step, and the scored rollouts of that step."""
    training, _ = build(base, rows, tmp_path)
    return training.trainer, first_batch(training.trainer)


def test_loss_is_the_papers(first_step: tuple[Any, dict[str, Any]]) -> None:
    """By hand: group-normalised advantages, ratio 1, k3 KL to the dense initial model."""
    trainer, inputs = first_step
    loss = trainer.compute_loss(trainer.model, inputs)
    rollout, order = trainer.rollout, inputs["rollout"]
    reward = (1 - rollout.token_ratio).view(2, 4)
    by_hand = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(inputs["advantages"], by_hand.view(-1)[order], atol=1e-5)
    mask = inputs["completion_mask"]
    delta = inputs["ref_per_token_logps"] - inputs["sampling_per_token_logps"]
    kl = delta.exp() - delta - 1
    per_token = -inputs["advantages"][:, None] + 0.1 * kl
    expected = ((per_token * mask).sum(1) / mask.sum(1)).mean()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert (kl * mask).sum() > 0


def test_dense_rollouts_have_no_divergence_at_first(
    first_step: tuple[Any, dict[str, Any]],
) -> None:
    trainer, inputs = first_step
    dense = (trainer.rollout.retention_p == 1)[inputs["rollout"]]
    delta = inputs["ref_per_token_logps"] - inputs["sampling_per_token_logps"]
    delta = delta * inputs["completion_mask"]
    assert delta[dense].abs().max() < 2e-5
    assert delta[~dense].abs().max() > 1e-3


def test_run_trains_the_language_model_only(base: Path, rows: list[Row], tmp_path: Path) -> None:
    training, log = build(base, rows, tmp_path)
    before = weights(training.trainer.model)
    training.trainer.train()
    after = training.trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(".visual." in name for name in changed)
    reference = training.trainer.ref_model.state_dict()
    assert all(torch.equal(before[name], reference[name]) for name in before)
    assert [step for step, _ in log.history] == [1, 2, 3, 4]
    last = log.history[-1][1]
    for name in ("accuracy", "efficiency", "gate", "token_ratio", "retention_p", "kl", "entropy",
                 "zero_advantage_share", "logp_gap", "loss", "grad_norm", "tokens_per_s",
                 "token_ratio_layer/0", "token_ratio_layer/1"):  # fmt: skip
        assert name in last
    assert last["retention_p"] == pytest.approx(0.775)
    assert max(values["logp_gap"] for _, values in log.history) < 2e-5


def test_long_rollouts_are_scored_as_they_were_sampled(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """Tens of tokens, one after another over pruned caches, then all at once."""
    training, log = build(base, rows, tmp_path, steps=1, max_completion_tokens=60)
    training.trainer.train()
    ((_, values),) = log.history
    assert values["completion_tokens"] > 30
    assert values["token_ratio"] < 0.9
    assert values["logp_gap"] < 2e-5


@pytest.mark.parametrize("objective", ["sparsity_forcing", "zipvl_sft"])
def test_bfloat16_computes_in_it_and_keeps_float32_weights(
    base: Path, rows: list[Row], tmp_path: Path, objective: str
) -> None:
    """Steps of 1e-6 would vanish in bfloat16 weights."""
    training, log = build(
        base, rows, tmp_path, objective=objective, dtype="bfloat16", steps=1, learning_rate=1e-6
    )
    trainer, computed = training.trainer, set()
    models = [trainer.model, *filter(None, [getattr(trainer, "ref_model", None)])]
    for model in models:
        projection = model.model.language_model.layers[0].mlp.up_proj
        projection.register_forward_hook(lambda _, __, output: computed.add(output.dtype))
    before = weights(trainer.model)
    trainer.train()
    assert computed == {torch.bfloat16}
    after = trainer.model.state_dict()
    assert {value.dtype for value in after.values()} == {torch.float32}
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    moved = (after[name] - before[name]).abs()
    assert 0 < moved.max() <= 2e-6
    values = log.history[-1][1]
    assert all(math.isfinite(value) for value in values.values())
    assert values.get("logp_gap", 0.0) < 0.05


def test_trained_tower_moves(base: Path, rows: list[Row], tmp_path: Path) -> None:
    training, _ = build(base, rows, tmp_path, train_vision=True, steps=1)
    before = weights(training.trainer.model)
    training.trainer.train()
    after = training.trainer.model.state_dict()
    assert any(not torch.equal(before[n], after[n]) for n in before if ".visual." in n)


@pytest.mark.parametrize("change", [{"rollouts_per_forward": 2}, {"gradient_checkpointing": True}])
def test_memory_settings_do_not_change_the_step(
    base: Path, rows: list[Row], tmp_path: Path, change: dict[str, Any]
) -> None:
    results = []
    for at, options in enumerate(({}, change)):
        training, log = build(base, rows, tmp_path / str(at), steps=1, **options)
        training.trainer.train()
        results.append(log.history[-1][1])
    assert results[1]["grad_norm"] == pytest.approx(results[0]["grad_norm"], rel=2e-3)
    assert results[1]["kl"] == pytest.approx(results[0]["kl"], rel=1e-3)


def test_loss_that_is_not_finite_ends_clearly(
    base: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, _ = build(base, rows, tmp_path, save_every=1, steps=3)
    trainer = training.trainer
    original = trainer._compute_loss

    def spoiled(model: Any, inputs: Any) -> torch.Tensor:
        loss = original(model, inputs)
        return loss * float("nan") if trainer.state.global_step == 1 else loss

    monkeypatch.setattr(trainer, "_compute_loss", spoiled)
    with pytest.raises(TrainingCollapse, match="loss = nan"):
        trainer.train()
    from sf.training.checkpoints import last_sealed

    last = last_sealed(tmp_path)
    assert last is not None
    assert last.name == "checkpoint-1"
    assert all(value.isfinite().all() for value in load_model(last).state_dict().values())


def test_gradient_that_is_not_finite_ends_before_the_weights_change(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    training, _ = build(base, rows, tmp_path)
    model = training.trainer.model
    before = weights(model)
    model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingCollapse, match="gradient"):
        training.trainer.train()
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "selector"),
    [
        ({"rollout_selector": "top_k"}, "top_k"),
        ({"rollout_selector": "threshold", "retention_p": [0.01, 0.02, 0.05, 0.1]}, "threshold"),
        ({"retention_p": {"low": 0.0, "high": 1.0}, "group_size": 6}, "zipvl"),
        ({"reward_correctness": "fractional", "reward_latency_weight": 1.0}, "zipvl"),
    ],
    ids=["top-k", "threshold", "range and group size", "latency"],
)
def test_rows_of_tables_four_to_six_are_parameters(
    base: Path, rows: list[Row], tmp_path: Path, changes: dict[str, Any], selector: str
) -> None:
    p, log = parameters(steps=1, **changes), Log()
    state, out = tmp_path / "state", tmp_path / "out"
    train(p, base, rows, state, out, log, {"model": "tiny", "objective": "sparsity_forcing"})
    values, record = log.history[-1][1], record_of(out)
    assert record is not None
    assert record.method == selector
    assert record.value is not None
    assert 0 < record.value < 1
    assert resolve(out) == resolve(load_model(out)) == build_method(selector, record.value)
    assert f"under {selector} at {record.value:g}" in (out / "README.md").read_text()
    assert values["logp_gap"] < 2e-5
    assert 0 < values["token_ratio"] < 1
    if selector == "top_k":
        assert values["token_ratio"] == pytest.approx(values["retention_p"], abs=0.03)
    saved = 1 - values["token_ratio"]
    if p.objective.reward_latency_weight:
        saved += 1 - values["latency_ratio"]
    assert values["efficiency"] == pytest.approx(saved, abs=1e-5)


def test_shared_work_is_done_once(base: Path, rows: list[Row], tmp_path: Path) -> None:
    """Two questions, eight rollouts: two runs of the tower, two prompts in the reference."""
    trainer = build(base, rows, tmp_path, steps=1)[0].trainer
    towers: list[int] = []
    for model in (trainer.model, trainer.ref_model):
        model.model.visual.register_forward_hook(lambda *_: towers.append(1))
    prompts: list[tuple[int, ...]] = []
    logits: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        prompts.append(tuple(kwargs["input_ids"].shape))
        logits.append(output.logits.shape[1])

    trainer.ref_model.register_forward_hook(note, with_kwargs=True)
    trainer.train()
    assert len(towers) == 2
    questions, answers = prompts
    assert questions[0] == 2
    assert answers[0] == 8
    width = max(len(ids) for ids in trainer.rollout.completion_ids)
    assert answers[1] == width - 1
    assert logits == [1, width - 1]
