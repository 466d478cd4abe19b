"""What is profiled: a checkpoint, or random weights of a real configuration built on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sf.errors import ConfigError

__all__ = ["SHAPES", "Shape", "Subject", "load_subject", "prompt_ids"]

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Shape:
    """A Qwen2.5-VL language model's sizes; the vision tower is left small, prompts are text.

    Attributes:
        hidden: width of the residual stream.
        layers: number of layers.
        heads: query heads; a head has hidden / heads channels.
        kv_heads: key and value heads.
        intermediate: width of the MLP.
        vocabulary: rows of the embedding.
        tied: whether embedding and output share weights.
        note: what it is.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    note: str


SHAPES: dict[str, Shape] = {
    "qwen2.5-vl-3b-quarter": Shape(
        512,
        2,
        4,
        1,
        2752,
        2048,
        True,
        "2 layers of a quarter of Qwen2.5-VL-3B's width, heads of 128",
    ),
    "qwen2.5-vl-3b-half": Shape(
        1024, 2, 8, 1, 5504, 2048, True, "2 layers of half of Qwen2.5-VL-3B's width, heads of 128"
    ),
    "qwen2.5-vl-3b-2layers": Shape(
        2048, 2, 16, 2, 11008, 2048, True, "2 layers of Qwen2.5-VL-3B's shape"
    ),
    "qwen2.5-vl-3b": Shape(2048, 36, 16, 2, 11008, 151936, True, "Qwen2.5-VL-3B's shape"),
    "qwen2.5-vl-7b": Shape(3584, 28, 28, 4, 18944, 152064, False, "Qwen2.5-VL-7B's shape"),
}


@dataclass(frozen=True)
class Subject:
    """A model to profile.

    Attributes:
        name: "checkpoint" or a key of `SHAPES`.
        model: on its device, in evaluation mode.
        weights: "trained" or "random".
        note: one line for a table.
    """

    name: str
    model: Any
    weights: str
    note: str


def load_subject(name: str, checkpoint: Path, dtype: str, device: str, seed: int) -> Subject:
    """Load the checkpoint, or build random weights on the device without a download.

    Raises:
        ConfigError: no such shape.
    """
    if name == CHECKPOINT:
        from sf.models import load_model

        model = load_model(checkpoint, dtype=dtype, device=device).eval()
        return Subject(name, model, "trained", "the study's own checkpoint")
    if name not in SHAPES:
        known = ", ".join([CHECKPOINT, *SHAPES])
        raise ConfigError("profile_subjects", name, "is unknown", f"choose among: {known}")
    shape = SHAPES[name]
    return Subject(name, _build(shape, dtype, device, seed), "random", shape.note)


def _build(shape: Shape, dtype: str, device: str, seed: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    head = shape.hidden // shape.heads
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.intermediate,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 262144,
            "bos_token_id": 4,
            "eos_token_id": 5,
            "pad_token_id": 5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": shape.hidden,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=shape.tied,
        vision_start_token_id=0,
        vision_end_token_id=1,
        image_token_id=2,
        video_token_id=3,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def prompt_ids(model: Any, batch: int, length: int, seed: int) -> torch.Tensor:
    """Random text tokens (batch, length), int64, on the model's device; no special ones.

    Args:
        model: its configuration says which tokens are special.
        batch: rows.
        length: tokens a row.
        seed: of the draw.
    """
    text = model.config.get_text_config()
    special = {
        value
        for config in (model.config, text, model.generation_config)
        for key, value in config.to_dict().items()
        if key.endswith("_token_id") and isinstance(value, int)
    }
    usable = torch.tensor([at for at in range(text.vocab_size) if at not in special])
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(usable), (batch, length), generator=generator)
    return usable[picks].to(model.device)
