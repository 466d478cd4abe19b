"""Models to profile: a checkpoint, or random weights in a real configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sf.errors import ConfigError

__all__ = [
    "SHAPES",
    "LoadedModel",
    "Shape",
    "class_and_config",
    "load_by_name",
    "load_checkpoint",
    "published",
]

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model and, if `tower` is set, of its vision tower.

    Attributes:
        hidden: width of the residual stream.
        layers: number of layers.
        heads: query heads, each with hidden / heads channels.
        kv_heads: key and value heads.
        intermediate: width of the MLP.
        vocabulary: rows of the embedding.
        tied: whether embedding and output share weights.
        note: description.
        family: the model class around it.
        tower: whether the vision tower has its published size rather than a small one.
        hub: the repository whose config.json has these sizes; empty for a part of a model.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    note: str
    family: Literal["qwen2_5_vl", "qwen2_vl", "llava_onevision"] = "qwen2_5_vl"
    tower: bool = False
    hub: str = ""


def _part(width: int, heads: int, kv_heads: int, mlp: int, note: str) -> Shape:
    return Shape(width, 2, heads, kv_heads, mlp, 2048, True, f"2 layers {note}")


def _whole(
    name: str, hub: str, family: Any, width: int, heads: int, kv_heads: int, mlp: int, **sizes: Any
) -> Shape:
    """A published model; by default with 28 layers and a vocabulary of 152064."""
    given = {"layers": 28, "vocabulary": 152064, "tied": False, **sizes}
    return Shape(
        width, given["layers"], heads, kv_heads, mlp, given["vocabulary"], given["tied"],
        f"{name}'s shape", family, tower=True, hub=hub,
    )  # fmt: skip


_SEVEN = (3584, 28, 4, 18944)


SHAPES: dict[str, Shape] = {
    "qwen2.5-vl-3b-quarter": _part(
        512, 4, 1, 2752, "of a quarter of Qwen2.5-VL-3B's width, heads of 128"
    ),
    "qwen2.5-vl-3b-half": _part(1024, 8, 1, 5504, "of half of Qwen2.5-VL-3B's width, heads of 128"),
    "qwen2.5-vl-3b-2layers": _part(2048, 16, 2, 11008, "of Qwen2.5-VL-3B's shape"),
    "qwen2.5-vl-3b": _whole(
        "Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", 2048, 16, 2, 11008,
        layers=36, vocabulary=151936, tied=True,
    ),
    "qwen2.5-vl-7b": _whole("Qwen2.5-VL-7B", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", *_SEVEN),
    "qwen2-vl-2b": _whole(
        "Qwen2-VL-2B", "Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", 1536, 12, 2, 8960,
        vocabulary=151936, tied=True,
    ),
    "qwen2-vl-7b": _whole("Qwen2-VL-7B", "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl", *_SEVEN),
    "llava-video-7b": _whole(
        "LLaVA-Video-7B-Qwen2", "lmms-lab/LLaVA-Video-7B-Qwen2", "llava_onevision", *_SEVEN
    ),
}  # fmt: skip


def published(hub: str) -> Shape | None:
    """The shape of a repository on the hub; None if it is not listed here."""
    return next((shape for shape in SHAPES.values() if shape.hub == hub), None)


@dataclass(frozen=True)
class LoadedModel:
    """A model to profile.

    Attributes:
        name: "checkpoint", a key of `SHAPES`, or a folder's name.
        model: on its device, in evaluation mode.
        weights: "trained" or "random".
        note: one line for a table.
        processor: None for random weights.
    """

    name: str
    model: Any
    weights: str
    note: str
    processor: Any = None


def load_checkpoint(
    name: str, path: Path | str, dtype: str, device: str, note: str = "the study's own checkpoint"
) -> LoadedModel:
    """Load a checkpoint from a folder or hub id, with its processor if it has one.

    Raises:
        DataError, UnsupportedModelError: see `sf.models.load_model`.
    """
    from sf.models import load_model, load_processor

    model = load_model(path, dtype=dtype, device=device).eval()
    folder = Path(path)
    known = not folder.is_dir() or (folder / "preprocessor_config.json").is_file()
    known = known or (folder / "processor_config.json").is_file()
    return LoadedModel(name, model, "trained", note, load_processor(path) if known else None)


def load_by_name(name: str, checkpoint: Path, dtype: str, device: str, seed: int) -> LoadedModel:
    """Load the checkpoint, or build random weights on the device without a download.

    Raises:
        ConfigError: unknown shape.
    """
    if name == CHECKPOINT:
        return load_checkpoint(name, checkpoint, dtype, device)
    if name not in SHAPES:
        known = ", ".join([CHECKPOINT, *SHAPES])
        raise ConfigError("profile.models", name, "is unknown", f"choose among: {known}")
    shape = SHAPES[name]
    return LoadedModel(name, _build(shape, dtype, device, seed), "random", shape.note)


def class_and_config(shape: Shape) -> tuple[Any, Any]:
    """The model class of a shape and its configuration."""
    build, config = _FAMILIES[shape.family](shape)
    config._attn_implementation = "sdpa"
    return build, config


def _build(shape: Shape, dtype: str, device: str, seed: int) -> Any:
    build, config = class_and_config(shape)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = build(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def _text(shape: Shape) -> dict[str, Any]:
    return {
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
    }


def _qwen(shape: Shape, vision: dict[str, Any], config: Any) -> Any:
    head = shape.hidden // shape.heads
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
    }
    return config(
        text_config={**_text(shape), "rope_parameters": rope},
        vision_config={"depth": 1, "num_heads": 2, **vision},
        tie_word_embeddings=shape.tied,
        vision_start_token_id=0,
        vision_end_token_id=1,
        image_token_id=2,
        video_token_id=3,
    )


def _qwen2_5_vl(shape: Shape) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "fullatt_block_indexes": [0],
    }
    if shape.tower:
        vision = {
            "depth": 32,
            "num_heads": 16,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "fullatt_block_indexes": [7, 15, 23, 31],
        }
    vision["out_hidden_size"] = shape.hidden
    return Qwen2_5_VLForConditionalGeneration, _qwen(shape, vision, Qwen2_5_VLConfig)


def _qwen2_vl(shape: Shape) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision: dict[str, Any] = {"embed_dim": 64, "mlp_ratio": 1}
    if shape.tower:
        vision = {"depth": 32, "num_heads": 16, "embed_dim": 1280, "mlp_ratio": 4}
    vision["hidden_size"] = shape.hidden
    return Qwen2VLForConditionalGeneration, _qwen(shape, vision, Qwen2VLConfig)


def _llava_onevision(shape: Shape) -> tuple[Any, Any]:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    from sf.models.llava_next_format import TOWERS

    tower = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    if shape.tower:
        tower = TOWERS["siglip-so400m-patch14-384"]
    tower = {**tower, "num_hidden_layers": tower["num_hidden_layers"] - 1}  # the last is not used
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(shape)},
        vision_config={
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **tower,
        },
        tie_word_embeddings=shape.tied,
        image_token_index=2,
        video_token_index=3,
        image_grid_pinpoints=[[tower["image_size"]] * 2],
    )
    return LlavaOnevisionForConditionalGeneration, config


_FAMILIES = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_vl": _qwen2_vl,
    "llava_onevision": _llava_onevision,
}
