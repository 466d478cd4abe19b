"""Distillation: loss and gradient against slow computations of the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sft import Gradients, first_loss, frozen_tower, gradients, prompt_and_reply, same
from tiny_world import Log, first_batch, parameters

from sf.attention import sparsify
from sf.data.manifest import Row
from sf.models import load_model, load_processor
from sf.progress import Progress
from sf.selection import Probes, TopP
from sf.training import token_scores
from sf.training.answers import gather_answers
from sf.training.distil import DistilTrainer
from sf.training.pathwise import tail_excess
from sf.training.run import assemble
from sf.training.sparsity_weight import LaggedWeight

ALMOST_ALL = 1 - 1e-9
"""Keeps every token of a short prompt, by the sparse attention function."""


def trainer_of(
    base: Path, rows: list[Row], folder: Path, **changes: Any
) -> tuple[DistilTrainer, Log]:
    p, log = parameters(objective="distil", **changes), Log()
    trainer = assemble(p, base, rows, folder, log, Progress("t", p.train.steps)).trainer
    assert isinstance(trainer, DistilTrainer)
    return trainer, log


def perturbed(trainer: Any) -> Gradients:
    """Move the student away from its teacher; returns the student."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.add_(0.02 * torch.randn_like(weight))
    return {name: w.clone() for name, w in trainer.model.state_dict().items()}


def outputs(model: Any, inputs: dict[str, Any], reply: torch.Tensor) -> list[torch.Tensor]:
    """Logits and last hidden states (C, .) before each token of a reply, in one plain forward."""
    given, width = dict(inputs), inputs["input_ids"].shape[1]
    whole = torch.cat([given.pop("input_ids"), reply], dim=1)
    types = torch.cat([given.pop("mm_token_type_ids"), torch.zeros_like(reply)], dim=1)
    given["attention_mask"] = torch.ones_like(whole)
    hidden = model.model(input_ids=whole, mm_token_type_ids=types, **given).last_hidden_state
    before = hidden[0, width - 1 : -1]
    return [model.lm_head(before), before]


def test_loss_and_gradient_are_those_of_plain_forwards(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """KL over the vocabulary and distance of hidden states, by autograd through whole logits."""
    trainer, _ = trainer_of(base, rows, tmp_path, sparsity_weight=1e-9)
    weights = perturbed(trainer)
    batch, loss, step_gradients = first_loss(trainer)
    student, teacher = frozen_tower(base), load_model(base)
    student.load_state_dict(weights)
    processor, p = load_processor(base), parameters()
    expected = torch.zeros(())
    thresholds = trainer.schedule(0, batch["place"].tolist())
    for row, threshold in zip(batch["row"].tolist(), thresholds, strict=True):
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        width = inputs["input_ids"].shape[1]
        with torch.no_grad():
            logits, wanted = outputs(teacher, inputs, reply)
        with sparsify(student, TopP(p=threshold), prompt_width=width):
            given, hidden = outputs(student, inputs, reply)
        logps, target = given.log_softmax(-1), logits.log_softmax(-1)
        kl = (target.exp() * (target - logps)).sum(-1)
        apart = (hidden - wanted).square().sum(-1) / wanted.square().sum(-1)
        expected = expected + (kl + 0.3 * apart).mean() / len(thresholds)
    expected.backward()
    assert float(loss) > 1e-3
    assert torch.allclose(loss, expected, rtol=1e-4)
    same(step_gradients, gradients(student), atol=2e-5)


def test_a_student_that_keeps_everything_has_nothing_to_learn(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    trainer, _ = trainer_of(base, rows, tmp_path, sparsity_weight=1e-9, retention_p=[ALMOST_ALL])
    _, loss, step_gradients = first_loss(trainer)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert max(float(gradient.abs().max()) for gradient in step_gradients.values()) < 1e-4


@pytest.mark.parametrize("measure", ["effective", "tail"])
def test_the_terms_gradient_is_that_of_whole_attention_matrices(
    base: Path, rows: list[Row], tmp_path: Path, measure: str
) -> None:
    """A student equal to its teacher: what moves it is the term alone. All rows are probes."""
    trainer, _ = trainer_of(
        base, rows, tmp_path, hidden_weight=0.0, sparsity_weight=3.0, sparsity_measure=measure,
        retention_p=[0.9, ALMOST_ALL], target_token_ratio=0.25,
    )  # fmt: skip
    trainer.schedule = type(trainer.schedule)("top_p", (ALMOST_ALL,), None, 4, 0)
    model, processor, p = frozen_tower(base), load_processor(base), parameters()
    if measure == "tail":
        trainer.measure = lambda *given: tail_excess(*given, token_ratio=0.25, retention_p=0.9)
    batch, _, step_gradients = first_loss(trainer)
    model.set_attn_implementation("eager")
    total = torch.zeros(())
    layers = len(model.model.language_model.layers)
    for row in batch["row"].tolist():
        inputs, _ = prompt_and_reply(processor, rows[row], p)
        for layer in model(**inputs, output_attentions=True).attentions:
            mass = layer[0].mean((0, 1))
            length = mass.shape[0]
            if measure == "effective":
                value = (-(mass * mass.clamp(min=1e-12).log()).sum()).exp() / length
            else:
                inside = mass.sort(descending=True).values[: -(-length // 4)].sum()
                value = ((1 - inside) / 0.1).log().clamp(min=0)
            total = total + value / layers / len(batch["row"])
    (3.0 * total).backward()
    assert trainer._figures.drain()["sparsity_term"] == pytest.approx(total.item(), abs=1e-5)
    expected = {n: g for n, g in gradients(model).items() if n in step_gradients}
    for name, gradient in expected.items():
        assert torch.allclose(step_gradients[name], gradient, atol=5e-5), name
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2


def test_tail_is_zero_where_top_p_keeps_no_more_than_the_target() -> None:
    torch.manual_seed(0)
    probes, valid = Probes(recent=8, spread=0), torch.ones(1, 8, dtype=torch.bool)
    for scale in (0.0, 1.0, 3.0, 30.0):
        query, key = torch.randn(1, 2, 8, 4), scale * torch.randn(1, 2, 8, 4)
        given = (query, key, valid, probes, 0.5)
        tail = tail_excess(*given, token_ratio=0.5, retention_p=0.9)
        mass = torch.zeros(8)
        for head in range(2):
            score = 0.5 * query[0, head] @ key[0, head].T
            hidden = torch.ones(8, 8, dtype=torch.bool).triu(1)
            mass += score.masked_fill(hidden, float("-inf")).softmax(-1).mean(0) / 2
        count = int((mass.sort(descending=True).values.cumsum(0) < 0.9).sum()) + 1
        assert (tail.item() == 0.0) == (count <= 4), (scale, count)


@pytest.mark.parametrize(
    "change",
    [{"rollouts_per_forward": 1}, {"gradient_checkpointing": True}, {"block": 3000}],
    ids=["micro-batches", "checkpointing", "blocks of tokens"],
)
def test_memory_settings_do_not_change_the_step(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    results = []
    for at, options in enumerate(({}, dict(change))):
        if "block" in options:
            monkeypatch.setattr(token_scores, "BLOCK_LOGITS", options.pop("block"))
        trainer, log = trainer_of(base, rows, tmp_path / str(at), steps=2, save_every=9, **options)
        perturbed(trainer)
        trainer.train()
        results.append([values for _, values in log.history])
    for plain, one in zip(*results, strict=True):
        for name in ("loss", "grad_norm", "token_ratio", "pathwise_ratio", "pathwise_weight"):
            assert plain[name] == pytest.approx(one[name], rel=2e-3), name


def test_the_teacher_of_adapters_is_the_model_without_them(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """The same hidden states as a copy's, whatever the adapters are; one run per question."""
    results = []
    for lora in (None, {"rank": 4, "alpha": 8}):
        trainer, _ = trainer_of(base, rows, tmp_path / str(lora), lora=lora)
        perturbed(trainer)
        batch = first_batch(trainer)
        answers = gather_answers(
            trainer.encoder, trainer.processing_class.tokenizer, batch["row"].tolist(),
            trainer.schedule(0, batch["place"].tolist()), trainer.schedule,
        )  # fmt: skip
        results.append(trainer.teacher.hidden(answers, bucketed=True))
    assert results[0].shape[:2] == (8, answers.width)
    mask = answers.answer_mask.bool()
    assert torch.allclose(results[0][mask], results[1][mask], atol=1e-5)


def test_bfloat16_is_near_float32(base: Path, rows: list[Row], tmp_path: Path) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        trainer, log = trainer_of(base, rows, tmp_path / dtype, steps=1, dtype=dtype)
        perturbed(trainer)
        trainer.train()
        losses.append(log.history[0][1]["loss"])
    assert losses[0] > 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_weight_follows_the_ratio_of_the_step_before_and_fades_at_the_target() -> None:
    own = LaggedWeight.of(parameters("distil", steps=10, sparsity_weight=2.0, dual_rate=10.0))

    def observe(*ratios: float) -> None:
        values, p = torch.tensor([*ratios, 0.9]), torch.tensor([0.9] * len(ratios) + [0.5])
        assert own.observe({"token_ratio": values, "retention_p": p}, 0.9).tolist() == (
            pytest.approx(list(ratios))
        )

    assert own.of_step(0) == 2.0
    observe(0.4, 0.6)
    observe(0.5)
    assert own.of_step(0) == 2.0  # a second micro-batch of the same step
    assert own.of_step(1) == pytest.approx(2.0 * (0.5 / 0.25))
    observe(0.25)
    saved = own.state_dict()
    assert own.of_step(2) == 0.0
    again = LaggedWeight.of(parameters("distil", steps=10, sparsity_weight=2.0, dual_rate=10.0))
    again.load_state_dict(saved)
    assert again.of_step(2) == 0.0
    assert again.state_dict() == own.state_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"retention_p": {"low": 0.5, "high": 0.9}}, "list"),
        ({"rollout_selector": "top_k"}, "top_p"),
        ({"retention_p": [1.0]}, "below 1"),
    ],
)
def test_a_ratio_that_cannot_be_asked_for(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"target_token_ratio.*{words}"):
        parameters("distil", **change)
