"""LLaVA-OneVision, and LLaVA-Video through the same class, with a Qwen2 language model."""

from __future__ import annotations

import pytest
import torch
from oracle import MaskForm
from tiny_models import IMAGE, PAD, VIDEO, VOCABULARY, generate
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from sf import FixedMask, TopP, sparsify

SIZE = 24  # pixels of a square image; 12-pixel patches
TEXT = {
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "pad_token_id": PAD,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 6,
}


def onevision():
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        text_config=TEXT,
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[SIZE, SIZE], [SIZE, 2 * SIZE]],
    )
    return LlavaOnevisionForConditionalGeneration(config).eval()


def next_video():
    torch.manual_seed(0)
    config = LlavaNextVideoConfig(
        text_config=TEXT,
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[SIZE, SIZE]],
    )
    return LlavaNextVideoForConditionalGeneration(config).eval()


def row(model, media, text, seed):
    """A prompt with as many placeholders as the model makes features."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    if media == "image":
        found["pixel_values"] = torch.randn(1, 2, 3, SIZE, SIZE, generator=generator)
        found["image_sizes"] = torch.tensor([[SIZE, SIZE]])
        features = model.get_image_features(**found, return_dict=True)
    else:
        found["pixel_values_videos"] = torch.randn(1, 4, 3, SIZE, SIZE, generator=generator)
        features = model.get_video_features(found["pixel_values_videos"], return_dict=True)
    count = sum(part.numel() for part in features.pooler_output) // TEXT["hidden_size"]
    words = torch.randint(3, 89, (text,), generator=generator)
    token = torch.full((count,), IMAGE if media == "image" else VIDEO)
    found["input_ids"] = torch.cat([words[:3], token, words[3:]])[None]
    found["attention_mask"] = torch.ones_like(found["input_ids"])
    return found


def padded(rows):
    widest = max(row["input_ids"].shape[1] for row in rows)
    joined = {}
    for one in rows:
        for key, value in one.items():
            if key in ("input_ids", "attention_mask"):
                value = torch.nn.functional.pad(value, (widest - value.shape[1], 0), value=PAD)
            joined.setdefault(key, []).append(value)
    return {key: torch.cat(values) for key, values in joined.items()}


@pytest.fixture(scope="module", params=[onevision, next_video], ids=["onevision", "next_video"])
def llava(request):
    return request.param()


@torch.no_grad()
def test_full_retention_is_dense_and_rows_do_not_feel_each_other(llava):
    rows = [row(llava, "image", 9, 1), row(llava, "video", 14, 2)]
    both = padded(rows)
    dense = generate(llava, both)
    with sparsify(llava, TopP(p=1.0)):
        same = generate(llava, both)
    assert torch.equal(torch.stack(dense.logits), torch.stack(same.logits))
    with sparsify(llava, TopP(p=[0.5, 0.8])) as trace:
        sparse = generate(llava, both)
    assert trace.token_ratio.max() < 1
    for i, p in enumerate([0.5, 0.8]):
        with sparsify(llava, TopP(p=p)) as own:
            alone = generate(llava, rows[i])
        gap = torch.stack(sparse.logits)[:, i] - torch.stack(alone.logits)[:, 0]
        assert gap.abs().max() <= 1e-5
        assert torch.equal(trace.kv_lengths[:, i], own.kv_lengths[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("media", ["image", "video"])
def test_teacher_forced_equals_incremental_and_the_mask_form(llava, media):
    given = row(llava, media, 14, 2)
    with sparsify(llava, TopP(p=0.7)) as trace:
        output = generate(llava, given)
    kept, width = trace.kept, given["input_ids"].shape[1]
    full = dict(given, input_ids=output.sequences)
    full["attention_mask"] = torch.ones_like(output.sequences)
    with sparsify(llava, FixedMask(kept), prompt_width=width):
        forced = llava(**full, use_cache=False).logits[0, width - 1 : -1]
    assert (forced - torch.stack(output.logits)[:, 0]).abs().max() <= 1e-5

    form = MaskForm([0.7], width)
    AttentionInterface.register("mask_form", form.attention)
    AttentionMaskInterface.register("mask_form", form.mask)
    decoder = llava.get_decoder()
    decoder.set_attn_implementation("mask_form")
    try:
        expected = llava(**full, use_cache=False).logits[0, width - 1 : -1]
    finally:
        decoder.set_attn_implementation("sdpa")
    assert all(torch.equal(kept[i], form.kept[i]) for i in range(3))
    assert (forced - expected).abs().max() <= 1e-5
