"""Visual tokens of pictures and clips, computed once, and the prompt prefix that contains them.

With a frozen tower, the visual tokens of a picture do not change, so training runs only the
language model. The prefix of a prompt (everything up to the end of vision) has the same tokens and
positions for all media of one kind and size.

Shape legend: M media, V visual tokens per medium, P prefix tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sf.data.vision import encode

if TYPE_CHECKING:
    import numpy as np

    from sf.mini.training_examples import TrainingExample
    from sf.sections import Vision

__all__ = ["Prefix", "make_prefix", "media_features", "vision_features", "vision_inputs"]

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of a prompt before the question.

    Attributes:
        ids: P token ids, up to and including the end of vision.
        positions: [3, P] rotary positions.
        visual: slice of the V placeholders within the prefix.
    """

    ids: tuple[int, ...]
    positions: Tensor
    visual: slice


def vision_inputs(processor: Any, data_type: str, media: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Patches and grids of media of one kind, uint8 [H, W, 3] or [T, H, W, 3], not resized."""
    if data_type == "image":
        encoded = processor.image_processor(
            images=list(media),
            do_resize=False,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        return {"pixels": encoded["pixel_values"], "grid": encoded["image_grid_thw"]}
    encoded = processor.video_processor(
        videos=list(media),
        do_resize=False,
        do_sample_frames=False,
        input_data_format="channels_last",
        return_tensors="pt",
    )
    return {"pixels": encoded["pixel_values_videos"], "grid": encoded["video_grid_thw"]}


def vision_features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Visual tokens [M, V, D] of media of one size, with gradients if enabled."""
    output = model.model.visual(inputs["pixels"], grid_thw=inputs["grid"])
    return output.pooler_output.view(len(inputs["grid"]), -1, output.pooler_output.shape[-1])


@torch.no_grad()
def media_features(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Tensor]:
    """Visual tokens [V, D] of each example's media, in order; kinds and sizes may be mixed."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault((example.data_type, example.frames.shape), []).append(index)
    features: list[Tensor] = [torch.empty(0)] * len(examples)
    for (data_type, _), members in groups.items():
        for start in range(0, len(members), _BATCH):
            part = members[start : start + _BATCH]
            media = [examples[index].frames for index in part]
            batch_features = vision_features(model, vision_inputs(processor, data_type, media))
            for index, tokens in zip(part, batch_features, strict=True):
                features[index] = tokens.clone()
    return features


def make_prefix(model: Any, processor: Any, example: TrainingExample, vision: Vision) -> Prefix:
    """The prefix of prompts about media like this example's, built as in inference."""
    media = (
        {"type": "image", "image": Image.fromarray(example.frames)}
        if example.data_type == "image"
        else {"type": "video", "video": (example.frames, example.metadata)}
    )
    turn = {"role": "user", "content": [media, {"type": "text", "text": "?"}]}
    inputs = encode(processor, [[turn]], vision)
    known = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    extra = {name: inputs[name] for name in known if name in inputs}
    if "second_per_grid_ts" in extra:
        extra["second_per_grid_ts"] = torch.as_tensor(extra["second_per_grid_ts"])
    ids = inputs["input_ids"]
    positions, _ = model.model.get_rope_index(ids, inputs["mm_token_type_ids"], **extra)
    places = torch.nonzero(inputs["mm_token_type_ids"][0]).flatten()
    end = int(places[-1]) + 2  # includes the end-of-vision token
    visual = slice(int(places[0]), int(places[-1]) + 1)
    return Prefix(tuple(ids[0, :end].tolist()), positions[:, 0, :end].clone(), visual)
