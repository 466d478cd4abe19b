"""Tiny random models and inputs, built from configurations in code."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
IMAGE, VIDEO, VISION_START, VISION_END, PAD = 90, 91, 92, 93, 0
VOCABULARY = 96
PATCH = 3 * 2 * 14 * 14

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
    # Large weights: attention of a default initialisation is flat, so nothing would be at stake.
    "initializer_range": 0.15,
}
_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}


def build(family: str, seed: int = 0, implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(seed)
    if family == "qwen2_vl":
        vision = {"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config=dict(_TEXT), vision_config=vision, **_TOKENS)
        config._attn_implementation = implementation
        model = Qwen2VLForConditionalGeneration(config)
    else:
        vision = {
            "depth": 1,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "num_heads": 2,
            "intermediate_size": 48,
            "fullatt_block_indexes": [0],
            "tokens_per_second": 2,
        }
        config = Qwen2_5_VLConfig(text_config=dict(_TEXT), vision_config=vision, **_TOKENS)
        config._attn_implementation = implementation
        model = Qwen2_5_VLForConditionalGeneration(config)
    return model.eval()


def text_model(seed: int = 0, **changes: object) -> PreTrainedModel:
    """A plain Qwen2."""
    torch.manual_seed(seed)
    text = {**_TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **changes}
    return Qwen2ForCausalLM(Qwen2Config(**text)).eval()


def prompt(media: str, text: int, seed: int) -> dict[str, Tensor]:
    """One row: a few text tokens, an image of 8x8 or a video of 3x4x8 patches, more text."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> Tensor:
        return torch.randint(3, 89, (count,), generator=generator)

    grid = {"image": [1, 8, 8], "video": [3, 4, 8]}.get(media)
    if grid is None:
        ids = words(text)
        return {"input_ids": ids[None], "attention_mask": torch.ones(1, text, dtype=torch.long)}
    token = IMAGE if media == "image" else VIDEO
    count = grid[0] * grid[1] * grid[2] // 4
    middle = torch.tensor([VISION_START] + [token] * count + [VISION_END])
    ids = torch.cat([words(text // 3), middle, words(text - text // 3)])
    kind = torch.zeros_like(ids)
    kind[ids == token] = 1 if media == "image" else 2
    pixels = torch.randn(grid[0] * grid[1] * grid[2], PATCH, generator=generator)
    row = {
        "input_ids": ids[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "mm_token_type_ids": kind[None],
    }
    suffix = "" if media == "image" else "_videos"
    row[f"pixel_values{suffix}"] = pixels
    row["image_grid_thw" if media == "image" else "video_grid_thw"] = torch.tensor([grid])
    return row


def batch(rows: list[dict[str, Tensor]], width: int | None = None) -> dict[str, Tensor]:
    """Rows left-padded to one width; pixels and grids concatenated."""
    widest = width or max(row["input_ids"].shape[1] for row in rows)
    joined: dict[str, list[Tensor]] = {}
    for row in rows:
        for key, value in row.items():
            if key in ("input_ids", "attention_mask", "mm_token_type_ids"):
                value = torch.nn.functional.pad(value, (widest - value.shape[1], 0), value=0)
            joined.setdefault(key, []).append(value)
        if "mm_token_type_ids" not in row:
            joined.setdefault("mm_token_type_ids", []).append(torch.zeros(1, widest).long())
    return {key: torch.cat(values) for key, values in joined.items()}


def generate(model: PreTrainedModel, inputs: dict[str, Tensor], count: int = 6, **kwargs: object):
    """Greedy generation of exactly `count` tokens with their logits."""
    return model.generate(
        **inputs,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=kwargs.pop("do_sample", False),
        suppress_tokens=[IMAGE, VIDEO, VISION_START, VISION_END],
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )
