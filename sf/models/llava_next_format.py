"""Translation of LLaVA-NeXT's config.json and tensor names to transformers.

Based on LLaVA-NeXT's code (github.com/LLaVA-VL/LLaVA-NeXT): `llava/model/llava_arch.py`,
`multimodal_encoder/siglip_encoder.py`, `language_model/llava_qwen.py`. Its SigLIP tower drops the
last encoder layer and uses the output of the previous one, without the final layer norm
(`mm_vision_select_layer` -2); transformers' class uses layer -1 of a tower that is one layer
shorter. Settings that transformers' classes and `VideoForm` cannot express exactly are rejected.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from sf.atomic_files import read_json
from sf.attention.video_form import CONFIG_KEY, LineEnds, Pooling, VideoForm
from sf.errors import DataError, UnsupportedModelError
from sf.models.load import readable

__all__ = [
    "SETTINGS",
    "TOWERS",
    "check_settings",
    "converted_config",
    "expected_tensors",
    "read_config",
]

_ABSENT: Any = object()
_OTHERWISE = "run this checkpoint with LLaVA-NeXT's own code"

_ALLOWED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "model_type": (("llava_qwen",), _ABSENT),
    "mm_projector_type": (("mlp2x_gelu",), "linear"),
    "mm_patch_merge_type": (("spatial_unpad",), "flat"),
    "mm_vision_select_layer": ((-2,), -2),
    "mm_resampler_type": ((None,), None),
    "mm_newline_position": (get_args(LineEnds), "one_token"),
    "mm_spatial_pool_mode": (get_args(Pooling), _ABSENT),
    "mm_spatial_pool_stride": ((2, None), None),  # ignored by the code, which pools by 2
    "add_faster_video": ((False, None), False),
    "add_time_instruction": ((False, True, None), False),
    "mm_use_im_start_end": ((False,), False),
    "rope_scaling": ((None,), None),
    "use_sliding_window": ((False,), False),
}
"""Field -> (convertible values, default in LLaVA-NeXT's code)."""

SETTINGS = (*_ALLOWED, "mm_vision_tower", "image_aspect_ratio", "image_grid_pinpoints")

TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
"""Last part of `mm_vision_tower` -> the tower's configuration, which the checkpoint lacks."""

_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "initializer_range"),
    *("num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings"),
    *("rms_norm_eps", "use_cache", "tie_word_embeddings", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Fields of the language model, with the same name and meaning in Qwen2's configuration."""

_VISION = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps"),
    "attention_dropout",
)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / "config.json"
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        rule = f"cannot be read: {error}"
        raise DataError(str(path), None, rule, "give a checkpoint's folder") from error
    if not isinstance(values, dict):
        raise DataError(str(path), None, "is not a JSON object", "give a checkpoint's folder")
    return values


def check_settings(values: Mapping[str, Any]) -> None:
    """Reject settings that transformers' classes run differently from LLaVA-NeXT's code.

    Raises:
        UnsupportedModelError: names the first such field.
    """
    for field, (allowed, default) in _ALLOWED.items():
        value = values.get(field, default)
        if value is _ABSENT or value not in allowed:
            shown = " or ".join(str(one) for one in allowed)
            raise UnsupportedModelError(
                field,
                "absent" if value is _ABSENT else value,
                f"only {shown} can be converted exactly",
                _OTHERWISE,
            )


def converted_config(
    values: Mapping[str, Any], folder: Path, dtype: str, tower: Path | None = None
) -> LlavaOnevisionConfig:
    """The configuration for transformers' classes, without the placeholders' ids.

    Args:
        values: from `read_config`, checked.
        folder: of the checkpoint; `mm_vision_tower` may name a folder below it.
        dtype: of the weights, by torch's name.
        tower: folder with the config.json of the complete vision tower.

    Raises:
        DataError: a field of the language model is missing or malformed.
        UnsupportedModelError: an unknown vision tower or image tiling.
    """
    vision = _vision_config(values, folder, tower)
    side = int(vision.image_size)  # type: ignore[arg-type] # one number in SigLIP's files
    missing = [name for name in ("vocab_size", "hidden_size", "rope_theta") if name not in values]
    if missing:
        rule = f"lacks {', '.join(missing)}"
        raise DataError("config.json", str(folder), rule, "fetch the checkpoint again")
    form = VideoForm(
        line_ends=values.get("mm_newline_position", "one_token"),
        pooling=values["mm_spatial_pool_mode"],
        time_text=bool(values.get("add_time_instruction", False)),
    )
    own = form.as_config()
    more: dict[str, Any] = {} if own is None else {CONFIG_KEY: own}
    with readable("config.json", folder):
        text = Qwen2Config(
            rope_parameters={"rope_type": "default", "rope_theta": float(values["rope_theta"])},
            **{name: values[name] for name in _TEXT if name in values},
        )
        return LlavaOnevisionConfig(
            vision_config=vision.to_dict(),
            text_config=text.to_dict(),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            projector_hidden_act="gelu",
            image_grid_pinpoints=_pinpoints(values, side),
            vision_aspect_ratio=_aspect_ratio(values),
            tie_word_embeddings=text.tie_word_embeddings,
            architectures=[LlavaOnevisionForConditionalGeneration.__name__],
            dtype=dtype,
            **more,
        )


def _vision_config(
    values: Mapping[str, Any], folder: Path, tower: Path | None
) -> SiglipVisionConfig:
    name = str(values.get("mm_vision_tower"))
    known: dict[str, Any] | None = TOWERS.get(Path(name).name)
    if tower is None and known is None and (folder / name / "config.json").is_file():
        tower = folder / name
    if tower is not None:
        whole = read_config(tower)
        part = whole.get("vision_config", whole)
        if part.get("model_type") != "siglip_vision_model":
            rule = "is not a SigLIP tower; only those can be converted"
            raise UnsupportedModelError("vision tower", str(tower), rule, "give another folder")
        known = part
    if known is None:
        rule = f"has an unknown shape; known: {', '.join(TOWERS)}"
        remedy = "give a folder with the tower's config.json as --vision-tower"
        raise UnsupportedModelError("mm_vision_tower", name, rule, remedy)
    with readable("vision tower", tower or folder):
        config = SiglipVisionConfig(**{field: known[field] for field in _VISION if field in known})
        config.num_hidden_layers -= 1
        config.vision_use_head = False
        return config


def _aspect_ratio(values: Mapping[str, Any]) -> str:
    ratio = str(values.get("image_aspect_ratio"))
    if not re.fullmatch(r"anyres_max_[1-9]\d*", ratio):
        rule = "only anyres_max_N can be converted exactly"
        raise UnsupportedModelError("image_aspect_ratio", ratio, rule, _OTHERWISE)
    return ratio


def _pinpoints(values: Mapping[str, Any], side: int) -> list[list[int]]:
    """Grid sizes (height, width) for tiling an image; LLaVA-NeXT stores (width, height)."""
    given = values.get("image_grid_pinpoints")
    cells = re.findall(r"\((\d+)x(\d+)\)", given) if isinstance(given, str) else []
    try:
        if cells:  # "(1x1),...,(6x6)": the first and the last grid, in tiles
            (left, low), (right, high) = ([int(n) for n in cell] for cell in (cells[0], cells[-1]))
            sizes = [
                (side * width, side * height)
                for width in range(left, right + 1)
                for height in range(low, high + 1)
            ]
        else:
            listed: Any = ast.literal_eval(given) if isinstance(given, str) else given
            sizes = [(int(width), int(height)) for width, height in listed]
    except (TypeError, ValueError, SyntaxError):
        sizes = []
    if not sizes or any(n < side or n % side for size in sizes for n in size):
        rule = f"must be a list of (width, height), multiples of {side}, or (AxB),...,(CxD)"
        remedy = "fetch the checkpoint again"
        raise UnsupportedModelError("image_grid_pinpoints", given, rule, remedy)
    return [[height, width] for width, height in sizes]


_PREFIXES = (
    # name in transformers; prefix in LLaVA-NeXT's files; prefix in files of transformers' class
    (
        "model.vision_tower.",
        "model.vision_tower.vision_tower.vision_model.",
        "vision_tower.vision_model.",
    ),
    (
        "model.multi_modal_projector.linear_1.",
        "model.mm_projector.0.",
        "multi_modal_projector.linear_1.",
    ),
    (
        "model.multi_modal_projector.linear_2.",
        "model.mm_projector.2.",
        "multi_modal_projector.linear_2.",
    ),
    ("model.image_newline", "model.image_newline", "image_newline"),
    ("model.language_model.", "model.", "language_model.model."),
    ("lm_head.", "lm_head.", "language_model.lm_head."),
)


def expected_tensors(
    config: LlavaOnevisionConfig, folder: Path
) -> dict[str, tuple[str, list[int]]]:
    """All tensors of the model: name in LLaVA-NeXT's files -> (name in transformers', shape).

    The new names are those of the published llava-hf checkpoints, which every version of
    transformers reads.

    Raises:
        DataError: the configuration from `folder` is invalid.
    """
    with readable("config.json", folder), torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    names = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        prefix, before, after = next(row for row in _PREFIXES if name.startswith(row[0]))
        # Some versions of transformers nest the tower one level deeper.
        rest = name.removeprefix(prefix).removeprefix("vision_model.")
        names[before + rest] = (after + rest, list(tensor.shape))
    return names
