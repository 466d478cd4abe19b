"""Rollouts, the replayed training forward and the reference agree with plain forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_world import VISION

from sf import FixedMask, TopP, sparsify
from sf.attention.decoding import Sampled
from sf.data.manifest import Row
from sf.training.encoding import Encoder, PromptBatch, encoder_outputs
from sf.training.reference import reference_logps
from sf.training.rollout import Rollout, Sampler
from sf.training.sampling import forbidden_ids

THRESHOLDS = [0.4, 0.6, 0.9, 1.0]


@pytest.fixture
def sampler(built: tuple[Any, Any]) -> Sampler:
    tokenizer = built[1].tokenizer
    return Sampler(
        temperature=0.8,
        max_completion_tokens=6,
        eos_token_ids=[tokenizer.eos_token_id or tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        forbidden=forbidden_ids(tokenizer, built[0]),
        make_policy=lambda p: TopP(p=p),
    )


@pytest.fixture
def rollout(built: tuple[Any, Any], rows: list[Row], sampler: Sampler) -> Rollout:
    """One image and one video question, four rollouts each, in mixed order."""
    model, processor = built
    encoder = Encoder(
        model, processor, rows, VISION, templates=["answer"] * len(rows), frozen_tower=True
    )
    prompts = PromptBatch.collate([encoder(0), encoder(1)], processor.tokenizer.pad_token_id)
    owner = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    return sampler(model.eval(), prompts, owner, THRESHOLDS * 2, seeds=range(8))


def padded(rollout: Rollout, pad: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    width = max(len(ids) for ids in rollout.completion_ids)
    tail = torch.tensor([ids + [pad] * (width - len(ids)) for ids in rollout.completion_ids])
    valid = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in rollout.completion_ids])
    ids = torch.cat([rollout.prompts.input_ids[rollout.owner], tail], dim=1)
    return ids, torch.cat([rollout.prompts.attention_mask[rollout.owner], valid], dim=1), width


def plain_logps(
    model: Any, rollout: Rollout, ids: torch.Tensor, mask: torch.Tensor, width: int
) -> torch.Tensor:
    """Log-probabilities at temperature 0.8 of one ordinary forward."""
    features = rollout.prompts.features(model)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=rollout.prompts.position_ids(rollout.owner, slice(None), width),
        mm_encoder_outputs=encoder_outputs(model, rollout.prompts, features, rollout.owner),
    ).logits[:, -width - 1 : -1]
    return torch.log_softmax(logits / 0.8, -1).gather(2, ids[:, -width:, None]).squeeze(2)


def test_ratio_follows_the_rollouts_own_threshold(rollout: Rollout) -> None:
    ratio = rollout.token_ratio.view(2, 4)
    assert torch.equal(rollout.retention_p.view(2, 4)[0], torch.tensor(THRESHOLDS))
    assert (ratio[:, 3] == 1).all()
    for question in (0, 1):
        own = rollout.token_ratio[rollout.owner == question]
        order = rollout.retention_p[rollout.owner == question].argsort()
        assert (own[order].diff() >= 0).all()
    assert rollout.token_ratio.min() < 0.9
    valid = rollout.prompts.attention_mask[rollout.owner].bool()
    by_hand = torch.stack([k.sum(1) / valid.sum(1) for k in rollout.kept])
    assert torch.allclose(by_hand, rollout.layer_ratios)
    assert torch.allclose(by_hand.mean(0), rollout.token_ratio)


def test_no_vision_token_is_sampled(
    built: tuple[Any, Any], rollout: Rollout, sampler: Sampler
) -> None:
    forbidden = set(sampler.forbidden)
    assert {built[0].config.image_token_id, built[0].config.video_token_id} < forbidden
    assert len(forbidden) in (5, 7)  # Qwen's; LLaVA's two besides
    assert not forbidden & {token for ids in rollout.completion_ids for token in ids}


def test_sampling_depends_on_the_rollouts_seed_only(
    built: tuple[Any, Any], rollout: Rollout, sampler: Sampler
) -> None:
    """Half of the rollouts, in another order and in one batch, after other draws."""
    torch.rand(7)
    chosen = [5, 0, 2, 6]
    again = sampler(
        built[0],
        rollout.prompts,
        rollout.owner[chosen],
        [(THRESHOLDS * 2)[at] for at in chosen],
        seeds=chosen,
        bucketed=False,
    )
    assert again.completion_ids == [rollout.completion_ids[at] for at in chosen]
    assert len({tuple(ids) for ids in rollout.completion_ids}) > 4


def test_seeded_sampling_follows_the_temperature() -> None:
    """Frequencies of 4,000 draws against softmax(logits / 0.5), the forbidden token left out."""
    logits = torch.tensor([0.0, 0.5, 1.0, 5.0])
    sampling = Sampled(0.5, [3], range(4000), 4, torch.device("cpu"))
    sampling.draw(4000)
    drawn, logps = (part[:, 0] for part in sampling(logits.expand(4000, -1)))
    shares = drawn.bincount(minlength=4) / 4000
    assert torch.allclose(shares[:3], torch.softmax(logits[:3] / 0.5, 0), atol=0.03)
    assert shares[3] == 0
    assert torch.allclose(logps, torch.log_softmax(logits / 0.5, 0)[drawn])


def test_sampling_ignores_the_checkpoints_generation_settings(
    built: tuple[Any, Any], rollout: Rollout, sampler: Sampler
) -> None:
    """Qwen2.5-VL's own have a repetition penalty of 1.05, which is not the trained policy."""
    settings = built[0].generation_config
    settings.repetition_penalty, settings.min_new_tokens = 1.5, 6
    try:
        again = sampler(built[0], rollout.prompts, rollout.owner, THRESHOLDS * 2, seeds=range(8))
    finally:
        settings.repetition_penalty = settings.min_new_tokens = None
    assert again.completion_ids == rollout.completion_ids
    assert again.logps == rollout.logps


@torch.no_grad()
def test_replayed_forward_gives_the_rollouts_logps(
    built: tuple[Any, Any], rollout: Rollout
) -> None:
    model, processor = built
    ids, mask, width = padded(rollout, processor.tokenizer.pad_token_id)
    prompt = rollout.prompts.input_ids.shape[1]
    with sparsify(model, FixedMask(rollout.kept), prompt_width=prompt):
        sparse = plain_logps(model, rollout, ids, mask, width)
    dense = plain_logps(model, rollout, ids, mask, width)
    for at, logps in enumerate(rollout.logps):
        recorded = torch.tensor(logps)
        assert torch.allclose(sparse[at, : len(logps)], recorded, atol=2e-5)
        if rollout.token_ratio[at] < 0.9:
            assert not torch.allclose(dense[at, : len(logps)], recorded, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("limit", [1, 4, 100])
def test_reference_shares_prompts_and_is_dense(
    built: tuple[Any, Any], rollout: Rollout, limit: int
) -> None:
    model, processor = built
    ids, mask, width = padded(rollout, processor.tokenizer.pad_token_id)
    logps = reference_logps(
        model, rollout, torch.arange(8), ids, mask, width, temperature=0.8,
        rollouts_per_forward=limit,
    )  # fmt: skip
    plain = plain_logps(model, rollout, ids, mask, width)
    valid = mask[:, -width:].bool()
    assert torch.allclose(logps[valid], plain[valid], atol=2e-5)
