"""The inputs of the longest prompt that the pixel and frame bounds allow, without media."""

from __future__ import annotations

import math
from typing import Any

import torch

from sf.data.budget import FACTOR, SHORT_QUESTION, TEMPORAL_PATCH
from sf.sections import Vision

__all__ = ["longest_inputs", "longest_modality"]

_PATCH_VALUES = 3 * TEMPORAL_PATCH * 14 * 14
_TEXT = 100
"""A token id of every tokenizer, and no placeholder."""


def longest_modality(vision: Vision) -> str:
    """Whether an image or a video can have more visual tokens: "image" or "video"."""
    return "video" if _cells(vision, "video") > _cells(vision, "image") else "image"


def longest_inputs(config: Any, vision: Vision, rows: int = 1) -> dict[str, torch.Tensor]:
    """What the processor would give for questions of `sf.data.budget.longest_prompt` tokens.

    Args:
        config: of a model of Qwen2-VL's or Qwen2.5-VL's architecture.
        vision: pixel and frame bounds.
        rows: questions of the batch.
    """
    modality = longest_modality(vision)
    frames = math.ceil(vision.video_max_frames / TEMPORAL_PATCH) if modality == "video" else 1
    cells = _cells(vision, modality)
    height, width = _sides(cells // frames)
    visual = getattr(config, f"{modality}_token_id")
    text = SHORT_QUESTION // 2
    ids = [*[_TEXT] * text, *[visual] * cells, *[_TEXT] * (SHORT_QUESTION - text)]
    kinds = [int(each == visual) * (2 if modality == "video" else 1) for each in ids]
    grid = torch.tensor([[frames, 2 * height, 2 * width]]).repeat(rows, 1)
    pixels = torch.zeros(rows * 4 * cells, _PATCH_VALUES)
    suffix = "_videos" if modality == "video" else ""
    inputs = {
        "input_ids": torch.tensor([ids]).repeat(rows, 1),
        "attention_mask": torch.ones(rows, len(ids), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([kinds]).repeat(rows, 1),
        f"pixel_values{suffix}": pixels,
        f"{modality}_grid_thw": grid,
    }
    if modality == "video" and hasattr(config.vision_config, "tokens_per_second"):
        inputs["second_per_grid_ts"] = torch.ones(rows)
    return inputs


def _cells(vision: Vision, modality: str) -> int:
    """The most visual tokens of an image or a video."""
    if modality == "image":
        return vision.image_max_pixels // FACTOR**2
    return math.ceil(vision.video_max_frames / TEMPORAL_PATCH) * (
        vision.video_max_pixels // FACTOR**2
    )


def _sides(cells: int) -> tuple[int, int]:
    """Rows and columns of cells, as square as their number allows."""
    height = next(side for side in range(math.isqrt(cells), 0, -1) if cells % side == 0)
    return height, cells // height
