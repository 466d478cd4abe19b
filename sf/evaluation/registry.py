"""The entry point that lmms-eval finds in the group `lmms_eval.models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sf  # noqa: F401  (installs the torchvision shim before lmms-eval imports processors)

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["MODEL_NAME", "manifest"]

MODEL_NAME = "sf_sparse"
"""lmms-eval's `--model`. It must not be a name with its own prompts (such as qwen3_vl)."""


def manifest() -> ModelManifest:
    """The chat model for Qwen2-VL, Qwen2.5-VL and LLaVA with any attention method."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_NAME, chat_class_path="sf.evaluation.model.SparseChatModel")
