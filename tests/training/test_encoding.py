"""Prompts of images and videos, encoded once and shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_world import VISION

from sf.data.manifest import Row
from sf.data.prompts import messages
from sf.data.vision import encode
from sf.training.backbone import backbone, vision_parts
from sf.training.encoding import Encoder, PromptBatch, encoder_outputs

PAD = 0


def make_encoder(built: tuple[Any, Any], rows: list[Row], **changes: Any) -> Encoder:
    options: dict[str, Any] = {
        "templates": ["answer"] * len(rows),
        "frozen_tower": True,
        **changes,
    }
    return Encoder(*built, rows, VISION, **options)


@torch.no_grad()
def test_shared_features_give_the_logits_of_the_pixels(
    built: tuple[Any, Any], rows: list[Row]
) -> None:
    """A padded batch of images and videos, against the processor's own inputs."""
    model, processor = built
    chosen = [0, 1, 2, 3]
    prompts = PromptBatch.collate([make_encoder(built, rows)(at) for at in chosen], PAD)
    owner = torch.arange(4)
    logits = model(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        position_ids=prompts.position_ids(owner, slice(None)),
        mm_encoder_outputs=encoder_outputs(model, prompts, prompts.features(model), owner),
    ).logits
    inputs = encode(processor, [messages(rows[at], "answer") for at in chosen], VISION)
    expected = model(**inputs).logits
    valid = inputs["attention_mask"].bool()
    assert not valid.all(), "the batch should need padding"
    assert torch.equal(prompts.attention_mask.bool(), valid)
    assert torch.allclose(logits[valid], expected[valid], atol=1e-4)


@torch.no_grad()
def test_positions_of_completions_are_the_models_own(
    built: tuple[Any, Any], rows: list[Row]
) -> None:
    model, processor = built
    prompts = PromptBatch.collate([make_encoder(built, rows)(at) for at in (0, 1)], PAD)
    owner = torch.tensor([1, 0, 1])
    positions = prompts.positions_with(owner, 3)
    inputs = encode(processor, [messages(rows[at], "answer") for at in (1, 0, 1)], VISION)
    if not hasattr(backbone(model), "get_rope_index"):  # as `generate` counts
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 3, dtype=torch.long)], dim=1)
        assert torch.equal(positions[0][mask.bool()], (mask.cumsum(1) - 1)[mask.bool()])
        assert torch.equal(prompts.position_ids(owner, slice(2, 5), 3), positions[0, :, 2:5])
        return
    grown = {
        name: torch.cat([inputs[name], inputs[name].new_full((3, 3), fill)], dim=1)
        for name, fill in (("input_ids", 9), ("attention_mask", 1), ("mm_token_type_ids", 0))
    }
    rest = {n: v for n, v in inputs.items() if n not in grown and not n.startswith("pixel")}
    expected, _ = backbone(model).get_rope_index(**grown, **rest)
    valid = grown["attention_mask"].bool()
    assert torch.equal(positions[:, valid], expected[:, valid])


def test_each_question_is_encoded_once(
    built: tuple[Any, Any], rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder(built, rows)
    calls = []
    tower: Any = next(iter(vision_parts(built[0]).values()))
    run = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *a, **k: calls.append(1) or run(*a, **k))
    for at in (0, 1, 0, 1, 0):
        encoder(at)
    assert len(calls) == 2
    assert encoder(0) is encoder(0)


def test_cache_is_bounded(built: tuple[Any, Any], rows: list[Row]) -> None:
    size = make_encoder(built, rows)(0).num_bytes
    encoder = make_encoder(built, rows, cache_bytes=2 * size)
    for at in range(len(rows)):
        encoder(at)
    assert encoder._bytes <= 2 * size
    assert 0 < len(encoder._kept) < len(rows)


def test_trained_tower_keeps_pixels_and_gives_gradients(
    built: tuple[Any, Any], rows: list[Row]
) -> None:
    model, _ = built
    frozen, pixels = make_encoder(built, rows)(1), make_encoder(built, rows, frozen_tower=False)(1)
    assert not frozen.media
    assert pixels.features is None
    prompts = PromptBatch.collate([pixels], PAD)
    (features,) = prompts.features(model)
    assert features.requires_grad
    assert frozen.features is not None
    assert torch.equal(features, frozen.features)
