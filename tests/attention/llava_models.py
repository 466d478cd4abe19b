"""Tiny random LLaVA models and inputs with ready pixels, built from configurations in code."""

from __future__ import annotations

import torch
from tiny_models import IMAGE, PAD, VIDEO, VOCABULARY
from transformers import (
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

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
    """A prompt with as many placeholders as the model has features."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    if media == "image":
        inputs["pixel_values"] = torch.randn(1, 2, 3, SIZE, SIZE, generator=generator)
        inputs["image_sizes"] = torch.tensor([[SIZE, SIZE]])
        features = model.get_image_features(**inputs, return_dict=True)
    else:
        inputs["pixel_values_videos"] = torch.randn(1, 4, 3, SIZE, SIZE, generator=generator)
        features = model.get_video_features(inputs["pixel_values_videos"], return_dict=True)
    count = sum(part.numel() for part in features.pooler_output) // TEXT["hidden_size"]
    words = torch.randint(3, 89, (text,), generator=generator)
    token = torch.full((count,), IMAGE if media == "image" else VIDEO)
    inputs["input_ids"] = torch.cat([words[:3], token, words[3:]])[None]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def padded(rows):
    widest = max(row["input_ids"].shape[1] for row in rows)
    joined = {}
    for one in rows:
        for key, value in one.items():
            if key in ("input_ids", "attention_mask"):
                value = torch.nn.functional.pad(value, (widest - value.shape[1], 0), value=PAD)
            joined.setdefault(key, []).append(value)
    return {key: torch.cat(values) for key, values in joined.items()}
