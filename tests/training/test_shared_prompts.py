"""One forward pass over the prompts for rollout and loss gives the results of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import VISION, Log, parameters

from sf import TopP
from sf.data.manifest import Row
from sf.progress import Progress
from sf.training import token_scores
from sf.training.encoding import Encoder, PromptBatch
from sf.training.logps import PolicyForward
from sf.training.rollout import Rollout, Sampler
from sf.training.run import assemble
from sf.training.sampling import forbidden_ids

PAD = 0


def rollouts(
    built: tuple[Any, Any],
    rows: list[Row],
    retention_p: list[float],
    tokens: int,
    *,
    shared: bool,
    bucketed: bool = True,
) -> Rollout:
    """Two questions of different length, an image and a video, with every threshold each."""
    model, processor = built
    tokenizer = processor.tokenizer
    encoder = Encoder(
        model, processor, rows, VISION, templates=["answer"] * len(rows), frozen_tower=True
    )
    prompts = PromptBatch.collate([encoder(0), encoder(1)], tokenizer.pad_token_id)
    owner = torch.tensor([0, 1]).repeat_interleave(len(retention_p))
    sampler = Sampler(
        temperature=0.8,
        max_completion_tokens=tokens,
        eos_token_ids=[tokenizer.convert_tokens_to_ids("<|im_end|>")],
        pad_token_id=PAD,
        forbidden=forbidden_ids(tokenizer, model),
        make_policy=lambda p: TopP(p=p),
    )
    return sampler(
        model.eval(),
        prompts,
        owner,
        retention_p * 2,
        seeds=range(len(owner)),
        bucketed=bucketed,
        shared=shared,
    )


def near(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal up to rounding of the largest gradient, which is several hundred in tiny LLaVA."""
    for name, gradient in expected.items():
        atol = 1e-5 * max(1.0, float(gradient.abs().max()))
        assert torch.allclose(ours[name], gradient, atol=atol), name


def learnt(
    model: Any, rollout: Rollout, bucketed: bool = True
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities and entropies of the rollouts in reverse order; gradients of a loss."""
    width = max(len(ids) for ids in rollout.completion_ids)
    tail = torch.tensor([ids + [PAD] * (width - len(ids)) for ids in rollout.completion_ids])
    valid = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in rollout.completion_ids])
    ids = torch.cat([rollout.prompts.input_ids[rollout.owner], tail], dim=1)
    mask = torch.cat([rollout.prompts.attention_mask[rollout.owner], valid], dim=1)
    order = torch.arange(len(rollout.owner)).flip(0)
    forward = PolicyForward(model, model, rollout, 0.8, bucketed=bucketed, passes=rollout.passes)
    logps, entropies = forward(order, ids[order], mask[order], width)
    weight = torch.linspace(-1, 1, logps.numel()).view_as(logps) * valid[order]
    model.zero_grad()
    (logps * weight).sum().backward()
    gradients = {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    model.zero_grad()
    covered = sorted(int(row) for rows, _ in forward.ratios for row in rows)
    assert covered == sorted(order.tolist())
    return logps.detach() * valid[order], entropies * valid[order], gradients


@pytest.mark.parametrize(
    ("retention_p", "tokens", "bucketed"),
    [
        ([0.4, 0.7, 1.0], 6, True),
        ([0.4, 0.7, 1.0], 6, False),
        ([1.0, 1.0], 3, True),
        ([0.5], 1, True),
    ],
    ids=["buckets", "padded", "dense", "one token"],
)
def test_same_gradient_as_two_forwards(
    built: tuple[Any, Any],
    rows: list[Row],
    retention_p: list[float],
    tokens: int,
    bucketed: bool,
) -> None:
    made = [
        rollouts(built, rows, retention_p, tokens, shared=shared, bucketed=bucketed)
        for shared in (False, True)
    ]
    assert made[0].completion_ids == made[1].completion_ids
    assert made[0].logps == made[1].logps
    assert all(torch.equal(a, b) for a, b in zip(made[0].kept, made[1].kept, strict=True))
    assert not made[0].passes
    assert len(made[1].passes) == (2 if bucketed else 1)
    (logps, entropies, plain), (own_logps, own_entropies, shared) = (
        learnt(built[0], rollout, bucketed) for rollout in made
    )
    assert torch.allclose(own_logps, logps, atol=1e-5)
    assert torch.allclose(own_entropies, entropies, atol=1e-5)
    assert plain.keys() == shared.keys()
    near(shared, plain)
    assert max(float(value.abs().max()) for value in plain.values()) > 0.1


def test_gradient_under_autocast(built: tuple[Any, Any], rows: list[Row]) -> None:
    """bfloat16 with float32 weights, whose casts sampling without a gradient uses as well."""
    model = built[0]
    outcomes = []
    for shared in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rollout = rollouts(built, rows, [0.4, 1.0], 5, shared=shared)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outcomes.append(learnt(model, rollout)[2])
    assert rollout.passes == []
    for name, expected in outcomes[0].items():
        alike = torch.cosine_similarity(expected.flatten(), outcomes[1][name].flatten(), dim=0)
        assert alike > 0.99, name


@pytest.mark.parametrize("tokens", [5, 1])
def test_same_in_blocks(
    built: tuple[Any, Any], rows: list[Row], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head over blocks of two tokens, whose logits are made again for the gradient."""
    rollout = rollouts(built, rows, [0.4, 1.0], tokens, shared=False)
    logps, entropies, whole = learnt(built[0], rollout)
    head = built[0].get_output_embeddings()
    monkeypatch.setattr(token_scores, "BLOCK_LOGITS", 2 * head.weight.shape[0])
    own, widths = head.forward, []
    monkeypatch.setattr(head, "forward", lambda x: (widths.append(x.shape[:-1].numel()), own(x))[1])
    for shared in (False, True):
        rollout = rollouts(built, rows, [0.4, 1.0], tokens, shared=shared)
        widths.clear()
        own_logps, own_entropies, gradients = learnt(built[0], rollout)
        assert max(widths) <= 2 or tokens == 1
        assert torch.allclose(own_logps, logps, atol=1e-6)
        assert torch.allclose(own_entropies, entropies, atol=1e-6)
        near(gradients, whole)


def test_passes_are_used_once_and_by_a_forward_that_learns(
    built: tuple[Any, Any], rows: list[Row]
) -> None:
    """Without a gradient they stay; a second forward pass runs the prompts again, alike."""
    rollout = rollouts(built, rows, [0.4, 1.0], 4, shared=True)
    model = built[0]
    with torch.no_grad():
        width = max(len(ids) for ids in rollout.completion_ids)
        tail = torch.tensor([ids + [PAD] * (width - len(ids)) for ids in rollout.completion_ids])
        ids = torch.cat([rollout.prompts.input_ids[rollout.owner], tail], dim=1)
        mask = torch.cat(
            [rollout.prompts.attention_mask[rollout.owner], torch.ones_like(tail)], dim=1
        )
        every = torch.arange(len(ids))
        PolicyForward(model, model, rollout, 0.8, True, passes=rollout.passes)(
            every, ids, mask, width
        )
    assert len(rollout.passes) == 2
    first = learnt(model, rollout)
    assert rollout.passes == []
    second = learnt(model, rollout)
    assert torch.allclose(first[0], second[0], atol=1e-5)


def prompt_forwards(base: Path, rows: list[Row], folder: Path, **changes: Any) -> int:
    """Rollouts whose prompts the policy runs in one step, rows of all its forwards together."""
    p = parameters(steps=1, save_every=99, **changes)
    trainer = assemble(p, base, rows, folder, Log(), Progress("t", 1)).trainer
    shortest = min(len(trainer.encoder(row).input_ids) for row in range(len(rows)))
    seen: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        batch, columns = kwargs["inputs_embeds"].shape[:2]
        if columns >= shortest:
            seen.append(batch)

    trainer.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    trainer.train()
    assert trainer.rollout.passes == []
    return sum(seen)


def test_policy_runs_every_prompt_once(base: Path, rows: list[Row], tmp_path: Path) -> None:
    assert prompt_forwards(base, rows, tmp_path / "a") == 8
    assert prompt_forwards(base, rows, tmp_path / "b", rollouts_per_forward=4) == 16
    assert prompt_forwards(base, rows, tmp_path / "c", objective="pathwise") == 16
    assert prompt_forwards(base, rows, tmp_path / "d", train_vision=True) == 16


def test_shared_step_is_the_step(base: Path, rows: list[Row], tmp_path: Path) -> None:
    """Weights after a step, compared with a trainer that does not share."""
    after = []
    for shares in (True, False):
        p = parameters(steps=2, save_every=99)
        trainer = assemble(p, base, rows, tmp_path / str(shares), Log(), Progress("t", 2)).trainer
        if not shares:
            trainer._shares_prompts = lambda: False
        trainer.train()
        after.append(trainer.model.state_dict())
    moved = {name: (after[0][name] - after[1][name]).abs().max() for name in after[0]}
    # AdamW's first steps are of size learning_rate (1e-3) whatever the gradient's size.
    assert max(float(value) for value in moved.values()) < 1e-4
