"""Supervised objectives: loss and gradient against slow computations of the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import VISION, Log, first_batch, parameters

from sf.attention import sparsify
from sf.data.answers import extract_answer
from sf.data.manifest import Row
from sf.data.prompts import Template, messages
from sf.data.vision import encode
from sf.errors import TrainingCollapse
from sf.models import load_model, load_processor
from sf.progress import Progress
from sf.selection import TopP
from sf.training.answers import gather_answers
from sf.training.dataset import question_order
from sf.training.encoding import Encoder
from sf.training.retention_schedule import RetentionSchedule
from sf.training.run import assemble
from sf.training.sft import SparseSFTTrainer

Gradients = dict[str, torch.Tensor]


def trainer_of(
    base: Path, rows: list[Row], folder: Path, objective: str = "zipvl_sft", **changes: Any
) -> tuple[SparseSFTTrainer, Log]:
    p, log = parameters(objective=objective, **changes), Log()
    trainer = assemble(p, base, rows, folder, log, Progress("t", p.train.steps)).trainer
    assert isinstance(trainer, SparseSFTTrainer)
    return trainer, log


def first_loss(trainer: SparseSFTTrainer) -> tuple[dict[str, Any], torch.Tensor, Gradients]:
    """The first micro-batch, its loss and its gradient."""
    assert trainer.model is not None
    batch = first_batch(trainer)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return batch, loss.detach(), gradients(trainer.model)


def gradients(model: Any) -> Gradients:
    return {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


def same(actual: Gradients, expected: Gradients, atol: float) -> None:
    """Equal up to rounding, and not zero everywhere."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(actual[name], gradient, atol=atol), name
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 100 * atol


def prompt_and_reply(processor: Any, row: Row, p: Any) -> tuple[dict[str, Any], torch.Tensor]:
    inputs = encode(processor, [messages(row, p.answering.prompt_template)], p.vision, "cpu")
    text = row.solution + processor.tokenizer.eos_token
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return dict(inputs), ids


def frozen_tower(base: Path) -> Any:
    model = load_model(base)
    model.model.visual.requires_grad_(False)
    return model


def step_by_step(model: Any, inputs: dict[str, Any], reply: torch.Tensor) -> torch.Tensor:
    """Mean NLL of a reply as in inference: a prefill, then one token after another."""
    logps = []
    output = model(**inputs, use_cache=True)
    cache, mask = output.past_key_values, inputs["attention_mask"]
    for at, token in enumerate(reply[0]):
        logps.append(torch.log_softmax(output.logits[0, -1], dim=-1)[token])
        if at + 1 == reply.shape[1]:
            break
        position = model.model.rope_deltas + mask.shape[1]
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        output = model(
            input_ids=reply[:, at : at + 1],
            attention_mask=mask,
            position_ids=position.view(1, 1, 1).expand(3, 1, 1),
            past_key_values=cache,
            use_cache=True,
        )
    return -torch.stack(logps).mean()


def test_loss_and_gradient_are_those_of_sparse_decoding(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    trainer, _ = trainer_of(base, rows, tmp_path)
    batch, loss, step_gradients = first_loss(trainer)
    thresholds = trainer.schedule(0, batch["place"].tolist())
    assert thresholds == [0.5, 0.7, 0.9, 1.0] * 2
    model, processor, p = frozen_tower(base), load_processor(base), parameters()
    expected = torch.zeros(())
    for row, threshold in zip(batch["row"].tolist(), thresholds, strict=True):
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        with sparsify(model, TopP(p=threshold)):
            expected = expected + step_by_step(model, inputs, reply) / 8
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    same(step_gradients, gradients(model), atol=2e-5)


@torch.no_grad()
def test_loss_of_long_answers_is_that_of_sparse_decoding(
    base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """Tens of tokens of working before one answer, beside a short one in the batch."""
    steps = [f"{colour} {count}," for count in range(5) for colour in ("red", "green", "blue")]
    working = f"<think>{' '.join(steps)} so red</think>"
    rows = [replace(row, solution=working * (at % 2) + row.solution) for at, row in enumerate(rows)]
    trainer, _ = trainer_of(base, rows, tmp_path, retention_p=[0.5, 0.9], group_size=2)
    batch = first_batch(trainer)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    model, processor, p = load_model(base), load_processor(base), parameters()
    expected, widths = torch.zeros(()), set()
    for row, threshold in zip(batch["row"].tolist(), [0.5, 0.9] * 2, strict=True):
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        widths.add(reply.shape[1])
        with sparsify(model, TopP(p=threshold)):
            expected = expected + step_by_step(model, inputs, reply) / 4
    assert max(widths) >= 30
    assert min(widths) < 10
    assert torch.allclose(loss, expected, atol=1e-5)


def test_full_retention_is_plain_fine_tuning(base: Path, rows: list[Row], tmp_path: Path) -> None:
    """transformers' own loss with labels on the answer only, one question at a time.

    The answers differ in length: in a batch all but the longest are padded.
    """
    rows = [
        replace(row, solution=f"<answer>{' '.join(['red'] * (at + 1))}</answer>")
        for at, row in enumerate(rows)
    ]
    trainer, _ = trainer_of(base, rows, tmp_path, retention_p=[1.0])
    batch, loss, step_gradients = first_loss(trainer)
    assert len(set(batch["row"].tolist())) > 1
    model, processor, p = frozen_tower(base), load_processor(base), parameters()
    expected = torch.zeros(())
    for row in batch["row"].tolist():
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        width = inputs["input_ids"].shape[1]
        whole = torch.cat([inputs.pop("input_ids"), reply], dim=1)
        labels = whole.clone()
        labels[:, :width] = -100
        types = torch.cat([inputs.pop("mm_token_type_ids"), torch.zeros_like(reply)], dim=1)
        inputs["attention_mask"] = torch.ones_like(whole)
        output = model(input_ids=whole, mm_token_type_ids=types, labels=labels, **inputs)
        expected = expected + output.loss / len(batch["row"])
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    same(step_gradients, gradients(model), atol=2e-5)


@pytest.mark.parametrize("kind", ["entropy", "linf"])
def test_sharpness_gradient_is_that_of_every_attention_row(
    base: Path, rows: list[Row], tmp_path: Path, kind: str
) -> None:
    """The attention matrices that eager attention returns; short prompts: all rows are probes."""
    weight = 3.0
    trainer, _ = trainer_of(base, rows, tmp_path, "sharpness", kind=kind, weight=weight)
    batch, loss, step_gradients = first_loss(trainer)
    assert trainer.schedule(0, batch["place"].tolist()) == [1.0, 1.0]
    processor, p = load_processor(base), parameters()
    model, plain = frozen_tower(base), frozen_tower(base)
    model.set_attn_implementation("eager")
    nll, flatness = torch.zeros(()), torch.zeros(())
    for row in batch["row"].tolist():
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        nll = nll + step_by_step(plain, inputs, reply) / 2
        for layer in model(**inputs, output_attentions=True).attentions:
            for position in range(layer.shape[2]):
                seen = layer[0, :, position, : position + 1]
                if kind == "linf":
                    value = (1 - seen.amax(-1)).mean() / layer.shape[2]
                elif position:
                    entropy = -(seen * seen.clamp(min=1e-12).log()).sum(-1)
                    value = (entropy / torch.tensor(position + 1.0).log()).mean()
                    value = value / (layer.shape[2] - 1)
                else:
                    continue
                flatness = flatness + value / len(model.model.language_model.layers) / 2
    nll.backward()
    (weight * flatness).backward()
    expected = gradients(plain)
    for name, gradient in gradients(model).items():
        expected[name] = expected.get(name, torch.zeros(())) + gradient
    assert torch.allclose(loss, nll, atol=1e-5)
    assert trainer._figures.drain()["sharpness"] == pytest.approx(flatness.item(), abs=1e-5)
    same(step_gradients, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("objective", "change"),
    [
        ("zipvl_sft", {"rollouts_per_forward": 3}),
        ("sharpness", {"rollouts_per_forward": 1}),
        ("sharpness", {"gradient_checkpointing": True}),
    ],
)
def test_memory_settings_do_not_change_the_step(
    base: Path, rows: list[Row], tmp_path: Path, objective: str, change: dict[str, Any]
) -> None:
    results = []
    for at, options in enumerate(({}, change)):
        trainer, log = trainer_of(
            base,
            rows,
            tmp_path / str(at),
            objective,
            steps=1,
            **({"weight": 2.0} if objective == "sharpness" else {}),
            **options,
        )
        trainer.train()
        results.append(log.history[-1][1])
    for name in ("loss", "grad_norm", "token_ratio"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-4), name


def test_run_learns_the_answers_and_logs_it(base: Path, rows: list[Row], tmp_path: Path) -> None:
    shown: list[tuple[int, list[dict[str, Any]]]] = []
    trainer, log = trainer_of(
        base, rows, tmp_path, steps=9, learning_rate=2e-2, save_every=99, log_every=3
    )
    trainer.samples = lambda step, table: shown.append((step, table))
    before = {n: w.clone() for n, w in trainer.model.state_dict().items()}
    trainer.train()
    changed = {n for n, w in trainer.model.state_dict().items() if not torch.equal(w, before[n])}
    assert changed
    assert not any(".visual." in name for name in changed)
    assert [step for step, _ in log.history] == [3, 6, 9]
    first, last = log.history[0][1], log.history[-1][1]
    assert last["loss"] < 0.5 * first["loss"]
    assert last["accuracy"] > 0 == first["accuracy"]
    assert last["retention_p"] == pytest.approx(0.775)
    assert 0 < last["token_ratio_layer/1"] < 1
    assert last["tokens_per_s"] > 0
    assert [step for step, _ in shown] == [3, 6, 9]
    order = question_order(len(rows), 18, seed=3)
    assert [table[0]["id"] for _, table in shown] == [rows[order[2 * s - 2]].id for s in (3, 6, 9)]
    assert [entry["retention_p"] for entry in shown[0][1]] == [0.5, 0.7, 0.9, 1.0]


def test_sharpness_falls_under_its_regulariser(base: Path, rows: list[Row], tmp_path: Path) -> None:
    for kind in ("entropy", "linf"):
        trainer, log = trainer_of(
            base,
            rows,
            tmp_path / kind,
            "sharpness",
            steps=5,
            weight=20.0,
            kind=kind,
            save_every=99,
        )
        trainer.train()
        assert log.history[-1][1]["sharpness"] < log.history[0][1]["sharpness"] - 0.01


def test_loss_that_is_not_finite_ends_clearly(base: Path, rows: list[Row], tmp_path: Path) -> None:
    trainer, _ = trainer_of(base, rows, tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(TrainingCollapse, match="loss"):
        trainer.train()


def test_a_row_asked_for_a_bare_answer_is_taught_one(base: Path, rows: list[Row]) -> None:
    model, processor = load_model(base), load_processor(base)
    templates: list[Template] = ["short", "answer"]
    encoder = Encoder(model, processor, rows[:2], VISION, templates=templates, frozen_tower=True)
    schedule = RetentionSchedule("top_p", (1.0,), None, 1, 0)
    batch = gather_answers(encoder, processor.tokenizer, [0, 1], [1.0, 1.0], schedule)
    end = processor.tokenizer.eos_token
    for at, expected in enumerate((extract_answer(rows[0].solution), rows[1].solution)):
        ids = batch.input_ids[at, -batch.width :][batch.answer_mask[at].bool()]
        assert processor.tokenizer.decode(ids) == expected + end
