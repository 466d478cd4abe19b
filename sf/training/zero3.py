"""Weights divided over ranks by DeepSpeed (ZeRO stage 3), an optional extra.

TRL and transformers drive DeepSpeed; here are its configuration, and what must not be divided.
"""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState

from sf.errors import EnvironmentFault
from sf.training.encoding import backbone

__all__ = ["own_tower", "zero3_config"]


def zero3_config(device: str) -> dict[str, Any]:
    """DeepSpeed's configuration; "auto" is filled in by transformers from its own arguments.

    Args:
        device: "cpu" (for tests) also opens accelerate's state: left to itself, 1.15 gives
            DeepSpeed no backend there and counts one process.

    Raises:
        EnvironmentFault: DeepSpeed is not installed.
    """
    if find_spec("deepspeed") is None:
        raise EnvironmentFault(
            "sharding",
            "zero3",
            "needs DeepSpeed, which is not installed",
            "make env EXTRAS=dev,zero3, or set sharding to fsdp",
        )
    if device == "cpu":
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
        del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,  # transformers' AdamW
    }


def own_tower(model: Any) -> Any:
    """A stand-in for `model` in an `Encoder`, with a copy of the vision tower that stays whole.

    Each rank encodes its own questions, at different times; DeepSpeed divides all of a model.
    """
    inner = copy.copy(backbone(model))
    inner._modules = dict(inner._modules)
    inner.visual = copy.deepcopy(backbone(model).visual)
    return SimpleNamespace(model=inner, device=model.device)
