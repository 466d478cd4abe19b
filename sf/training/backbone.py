"""What training needs of a model's architecture: its vision tower and its positions.

Qwen2-VL and Qwen2.5-VL have rope positions on three axes, LLaVA-OneVision and LLaVA-NeXT-Video
plain ones. A LLaVA image is several tiles of the tower's input size; transformers' LLaVA classes
take videos of one number of frames in a forward pass, but the features of any.

Shapes: R rows, L tokens, V visual tokens, H hidden size, A axes of positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sf.attention.decoder_hooks import find_decoder, unwrapped
from sf.errors import UnsupportedModelError
from sf.models.load import FAMILIES

__all__ = [
    "MEDIA",
    "as_position_ids",
    "backbone",
    "joined_features",
    "prompt_positions",
    "tower_output",
    "vision_parts",
]

MEDIA = {
    "image": ("pixel_values", "image_grid_thw", "image_sizes"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
"""The arguments of `get_image_features` and `get_video_features`, as processors name them."""


def backbone(model: Any) -> Any:
    """The model without its language-model head, whose parts are the tower and the decoder.

    Raises:
        UnsupportedModelError: the model is not of a supported family.
    """
    whole = unwrapped(model)
    kind = getattr(getattr(whole, "config", None), "model_type", type(whole).__name__)
    if kind not in FAMILIES:
        rule = f"cannot be trained; it must be one of {', '.join(FAMILIES)}"
        raise UnsupportedModelError("model type", kind, rule, "choose a model of these families")
    return whole.model


def vision_parts(model: Any) -> dict[str, nn.Module | nn.Parameter]:
    """Everything that turns pixels into visual tokens, by its name in the backbone.

    Qwen: the tower with its merger. LLaVA: the tower, the projector and the line-end token.
    """
    inner, decoder = backbone(model), find_decoder(model)[1]
    parts = {**dict(inner.named_children()), **dict(inner.named_parameters(recurse=False))}
    return {name: part for name, part in parts.items() if part is not decoder}


def tower_output(model: Any, modality: str, media: Mapping[str, Tensor]) -> Tensor:
    """(V, H), the visual tokens of one medium, line ends included.

    Args:
        model: perhaps wrapped.
        modality: "image" or "video".
        media: the processor's output for it, by the names in `MEDIA`.
    """
    run = getattr(backbone(model), f"get_{modality}_features")
    parts = run(**media, return_dict=True).pooler_output
    return torch.cat([part.flatten(0, -2) for part in parts])


def joined_features(model: Any, modality: str, features: Sequence[Tensor]) -> Any:
    """Visual tokens (V, H) of several media, in the form of the model's own encoder output."""
    kind = unwrapped(model).config.model_type
    output: Any = tuple(features)
    if modality == "video" and kind == "llava_onevision":
        output = torch.cat(output)[None]  # a batch of equally long videos, which it flattens
    elif modality == "video" and kind == "llava_next_video":
        output = tuple(part[None] for part in features)  # frames apart, which it flattens
    return BaseModelOutputWithPooling(pooler_output=output)


def prompt_positions(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """(A, L) long, the positions of an unpadded prompt, and the one after it on all axes.

    Args:
        model: perhaps wrapped.
        inputs: of one prompt, from its processor.
    """
    inner, length = backbone(model), inputs["input_ids"].shape[1]
    if not hasattr(inner, "get_rope_index"):
        return torch.arange(length, device=inputs["input_ids"].device)[None], length
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    positions, deltas = inner.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        attention_mask=inputs["attention_mask"],
        **{name: inputs.get(name) for name in names},
    )
    return positions[:, 0], length + int(deltas[0])


def as_position_ids(positions: Tensor) -> Tensor:
    """Positions (A, R, L) as the model takes them: (R, L) on a single axis."""
    return positions if len(positions) > 1 else positions[0]
