"""Qwen models with a windowed vision block, and prompts whose media span several windows."""

from __future__ import annotations

import copy

import torch
from tiny_models import IMAGE, PATCH, VIDEO, VISION_END, VISION_START, build

GRIDS = {"image": [1, 12, 8], "video": [3, 4, 12]}  # patches; a window is 4 x 4 of them
UNIT = 4


def windowed_model(family):
    """Two vision blocks; in Qwen2.5-VL the first is windowed, so that windows matter."""
    model = build(family)
    config = copy.deepcopy(model.config)
    config.vision_config.depth = 2
    if family == "qwen2_5_vl":
        config.vision_config.window_size = 56
        config.vision_config.fullatt_block_indexes = [1]
    torch.manual_seed(3)
    model = type(model)(config).eval()
    for block in model.model.visual.blocks:
        block.attn.qkv.weight.data.normal_(std=0.5)
    return model


def row(media, text=9, seed=7):
    generator = torch.Generator().manual_seed(seed)
    t, h, w = GRIDS[media]
    token, count = (IMAGE if media == "image" else VIDEO), t * h * w // UNIT
    words = torch.randint(3, 89, (text,), generator=generator)
    middle = torch.tensor([VISION_START] + [token] * count + [VISION_END])
    ids = torch.cat([words[:4], middle, words[4:]])
    kind = torch.zeros_like(ids)
    kind[ids == token] = 1 if media == "image" else 2
    pixels = torch.randn(t * h * w, PATCH, generator=generator)
    names = {"image": ("pixel_values", "image_grid_thw")}.get(
        media, ("pixel_values_videos", "video_grid_thw")
    )
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "mm_token_type_ids": kind[None],
        names[0]: pixels,
        names[1]: torch.tensor([GRIDS[media]]),
    }
