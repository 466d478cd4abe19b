"""LLaVA-Video's video processing on transformers' LLaVA-OneVision classes.

`load_model` and `load_processor` apply the form that a checkpoint's config.json names
(`sf.attention.video_form`).

Shape legend: V videos, F frames, R rows and C columns of a pooled frame, L visual tokens of a
video, D channels.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaOnevisionModel, LlavaOnevisionProcessor

from sf.attention.video_form import VideoForm, video_form

__all__ = ["LlavaVideoModel", "LlavaVideoProcessor", "apply_video_form"]


class LlavaVideoModel(LlavaOnevisionModel):
    """transformers' model with the pooling and the line-end tokens of a `VideoForm`."""

    def apply_pooling(self, image_features: Tensor) -> Tensor:
        """Pooled frames [V * F, R * C, D] of frames [V * F, side * side, D]."""
        form = video_form(self.config)
        if form.pooling == "bilinear":
            pooled: Tensor = super().apply_pooling(image_features)
            return pooled
        side = math.isqrt(image_features.shape[1])
        rows = image_features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        pool = functional.avg_pool2d if form.pooling == "average" else functional.max_pool2d
        return pool(rows, 2).flatten(2).transpose(1, 2)

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; `pooler_output` [V, L, D] includes the form's line-end tokens."""
        output = super().get_video_features(*args, **{**kwargs, "return_dict": True})
        form = video_form(self.config)
        if form.line_ends == "one_token":
            return output
        name = "pixel_values_videos" if "pixel_values_videos" in kwargs else "pixel_values"
        pixels = args[0] if args else kwargs[name]
        tower: Any = self.config.vision_config
        columns = form.pooled(tower.image_size // tower.patch_size)
        features_VLD = output.pooler_output
        num_cells = pixels.shape[1] * columns**2
        line = columns if form.line_ends == "grid" else columns**2
        lines = features_VLD[:, :num_cells].unflatten(1, (-1, line))  # [V, lines, line, D]
        end = self.image_newline.to(lines).expand(*lines.shape[:2], 1, -1)
        ended = torch.cat((lines, end), dim=2).flatten(1, 2)
        # transformers 5.17 adds the last line end in `forward`, later versions in this method.
        last = features_VLD.shape[1] > num_cells
        output.pooler_output = ended if last else ended[:, :-1]
        return output


class LlavaVideoProcessor(LlavaOnevisionProcessor):
    """transformers' processor with as many placeholders as the `VideoForm` has tokens.

    Attributes:
        llava_video: the form, as config.json holds it.
    """

    llava_video: dict[str, Any]

    @property
    def video_form(self) -> VideoForm:
        """The form of videos as tokens."""
        return VideoForm(**self.llava_video)

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **_: Any) -> str:
        """The placeholders of one video."""
        frames = len(video_inputs["pixel_values_videos"][video_idx])
        count = self.video_form.num_tokens(frames, math.isqrt(self.num_image_tokens))
        return str(self.video_token) * count

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, as a processor of its own class: the form is in config.json."""
        plain = copy.copy(self)
        vars(plain).pop("llava_video")
        plain.__class__ = LlavaOnevisionProcessor  # type: ignore[assignment]
        return plain.save_pretrained(*args, **kwargs)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; signals to the template that line-end tokens will be added."""
        return super().apply_chat_template(*args, **{"line_ends": True, **kwargs})


def apply_video_form(part: Any, config: Any) -> None:
    """Apply the form that `config` names to a model or a processor of transformers.

    The class is replaced in place, because the subclasses add no weights; transformers then still
    reads and writes weights under the names of its own class.
    """
    form = video_form(config).as_config()
    if form is None:
        return
    if isinstance(part, LlavaOnevisionProcessor):
        part.__class__ = LlavaVideoProcessor
        vars(part)["llava_video"] = form
    else:
        part.model.__class__ = LlavaVideoModel
