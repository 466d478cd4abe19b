"""Loading checkpoints of the supported families."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoProcessor,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from sf.attention.trained import equip, recall, trained_attention
from sf.errors import ConfigError, DataError, SparsityForcingError, UnsupportedModelError
from sf.models.llava_video import apply_video_form
from sf.models.weight_files import INDEX, indexed_files
from sf.progress import without_tensor_bars

__all__ = ["FAMILIES", "load_config", "load_model", "load_processor"]

FAMILIES: dict[str, Any] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
    "llava_next_video": LlavaNextVideoForConditionalGeneration,
}
"""Model type in config.json -> class."""

_ORIGINAL_LLAVA = ("llava", "llava_qwen", "llava_mistral")  # of the LLaVA-NeXT code
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def readable(
    part: str, place: Path | str, remedy: str = "give a complete checkpoint"
) -> Iterator[None]:
    """Turn exceptions from missing, unreachable or damaged model files into one clear error.

    transformers can raise anything on a malformed file: KeyError, TypeError, RecursionError, …
    """
    try:
        yield
    except (SparsityForcingError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(part, str(place), f"it cannot be loaded: {reason}", remedy) from error


def _loadable(path: Path | str) -> AbstractContextManager[None]:
    remedy = "give a folder with model and processor, or OWNER/NAME on the hub"
    return readable("model", path, remedy)


def load_config(path: Path | str, revision: str | None = None) -> Any:
    """The configuration of a checkpoint of a supported family.

    Args:
        path: a local folder, or a hub id.
        revision: commit, tag or branch of a hub id.

    Raises:
        DataError: `path` is a local path without a config.json or a hub id that cannot be fetched,
            or the checkpoint's training record is malformed.
        UnsupportedModelError: the architecture is not one of `FAMILIES`.
    """
    folder = Path(path)
    local = isinstance(path, Path) or folder.is_dir() or str(path).startswith((".", "/"))
    if local and not (folder / "config.json").is_file():
        raise DataError(
            "model path", str(path), "has no config.json", "give a folder of a saved model"
        )
    if local:
        _refuse_foreign_parts(folder)
    with _loadable(path):
        values, _ = PreTrainedConfig.get_config_dict(str(path), revision=revision or "main")
        model_type = str(values.get("model_type"))
    if model_type not in FAMILIES:
        convert = "convert it to transformers' llava_onevision first: sf convert SOURCE TARGET"
        raise UnsupportedModelError(
            "model type",
            model_type,
            f"must be one of {sorted(FAMILIES)}",
            convert
            if model_type in _ORIGINAL_LLAVA
            else "choose a checkpoint of a supported family",
        )
    if not isinstance(values.get("vision_config"), dict):  # transformers would take its defaults
        rule, remedy = "has no vision_config", "give a folder of a saved model"
        raise DataError("config.json", str(path), rule, remedy)
    with _loadable(path):
        config = AutoConfig.from_pretrained(
            str(path), revision=revision or "main", trust_remote_code=False
        )
    if local:
        recall(config, folder)
    return config


def _refuse_foreign_parts(folder: Path) -> None:
    """Reject parts that transformers would load from outside a local folder.

    Raises:
        DataError: the folder contains an adapter, which refers to its base model, or its weight
            index leads out of it.
    """
    if (folder / "adapter_config.json").is_file():
        rule = "contains an adapter, whose base model would be loaded from elsewhere"
        remedy = "merge it (peft's merge_and_unload) and save the complete model"
        raise DataError("model path", str(folder), rule, remedy)
    if (folder / INDEX).is_file():
        indexed_files(folder / INDEX)


@without_tensor_bars()
def load_model(
    path: Path | str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attn_implementation: str | dict[str, str] = "sdpa",
    revision: str | None = None,
) -> Any:
    """Load a model for inference (evaluation mode).

    Args:
        path: a local folder, or a hub id.
        dtype: "float32", "bfloat16" or "float16".
        device: of the weights.
        attn_implementation: as transformers takes it; a dict names sub-configurations.
        revision: commit, tag or branch of a hub id.

    Raises:
        ConfigError: the dtype is unknown.
        DataError: no model, or an incomplete one.
        UnsupportedModelError: the architecture is not one of `FAMILIES`.
    """
    if dtype not in _DTYPES:
        raise ConfigError("dtype", dtype, f"must be one of {sorted(_DTYPES)}")
    config = load_config(path, revision)
    with _loadable(path):
        model = _model_class(config).from_pretrained(
            str(path),
            revision=revision or "main",
            dtype=_DTYPES[dtype],
            attn_implementation=attn_implementation,
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,
        )
    apply_video_form(model, config)
    if Path(path).is_dir():
        recall(model.config, Path(path))
    return model.to(device).eval()


def _model_class(config: Any) -> Any:
    """The family's class, with the modules of the attention that the checkpoint was trained with.

    They must exist before the weights are read: transformers drops weights without a module.
    """
    family = FAMILIES[config.model_type]
    if trained_attention(config) is None:
        return family

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        family.__init__(self, config, *args, **kwargs)
        equip(self)

    return type(family.__name__, (family,), {"__init__": init, "__module__": family.__module__})


def load_processor(path: Path | str, *, revision: str | None = None) -> Any:
    """The processor (image, video, text) saved with a model; its tokenizer pads on the left.

    Raises:
        DataError, UnsupportedModelError: as in `load_config`.
    """
    config = load_config(path, revision)
    with _loadable(path):
        processor = AutoProcessor.from_pretrained(
            str(path), revision=revision or "main", trust_remote_code=False
        )
    apply_video_form(processor, config)
    processor.tokenizer.padding_side = "left"
    return processor
