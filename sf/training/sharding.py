"""Weights, gradients and optimiser state sharded over the ranks of a job (FSDP version 2).

Each layer's weights are gathered for its forward and backward pass and sharded again. This module
calls torch's public `fully_shard` itself, because accelerate (1.15) shards on GPUs only and
silently trains data parallel elsewhere: CPU tests thus cover the code that runs on GPUs.

`gathered` gathers the whole model once, where ranks may run different numbers of forward passes
(answers of different lengths, references of groups that end on another rank).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sf.attention.decoder_hooks import find_decoder
from sf.ranks import join, rank, world_size
from sf.training.backbone import backbone, vision_parts
from sf.training.optimizer_files import read_state, write_state

__all__ = [
    "gathered",
    "is_sharded",
    "kept_whole",
    "load_optimizer",
    "load_weights",
    "local",
    "save_optimizer",
    "shard",
    "shard_reference",
    "whole_weights",
]

OPTIMIZER_FOLDER = "optimizer"


def shard(model: nn.Module, device: str, dtype: str) -> None:
    """Shard a model's weights over all ranks, in place.

    Frozen weights outside the decoder (the vision parts) stay whole on each rank: they are used for
    each rank's own questions, at different times.

    Args:
        model: a transformers model; the same weights on all ranks.
        device: "cpu" or "cuda", where the weights are.
        dtype: "bfloat16" computes in bfloat16 with float32 weights and sums of gradients; else
            float32.
    """
    join()
    # Casting inputs would copy the dataclasses among them, and what layers note there were lost.
    half = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    common: dict[str, Any] = {
        "mesh": init_device_mesh(device, (world_size(),)),
        "mp_policy": half if dtype == "bfloat16" else MixedPrecisionPolicy(),
        "reshard_after_forward": True,
        "ignored_params": kept_whole(model),
    }
    for layer in find_decoder(model)[1].layers:  # type: ignore[union-attr]
        fully_shard(layer, **common)
    fully_shard(model, **common)


def shard_reference(reference: nn.Module, policy: nn.Module, device: str, dtype: str) -> None:
    """Shard the reference's weights; it shares the policy's frozen vision parts.

    Args:
        reference: a model that is not trained.
        policy: after `shard`.
        device, dtype: as in `shard`.
    """
    for name, part in vision_parts(policy).items():
        setattr(backbone(reference), name, part)
    shard(reference.requires_grad_(False), device, dtype)


def kept_whole(model: nn.Module) -> set[nn.Parameter]:
    """The weights that `shard` leaves whole on each rank."""
    owner, decoder = find_decoder(model)
    inside = set(decoder.parameters()) | set(owner.get_output_embeddings().parameters())
    return {p for p in model.parameters() if not p.requires_grad and p not in inside}


def is_sharded(model: Any) -> bool:
    """Whether `shard` was called on the model."""
    return isinstance(model, FSDPModule)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every rank; no effect on a model that is not sharded.

    Inside, forward passes are independent of other ranks; entering and leaving are collective.
    For inference only. Memory: the whole weights, in the dtype of the computation.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of the first rank, nothing on the others; all ranks must call it.

    As transformers saves them: tied weights once.
    """
    weights = get_model_state_dict(model, options=_whole())
    tied = getattr(model, "all_tied_weights_keys", {})
    return {name: weight for name, weight in weights.items() if name not in tied}


def load_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Shard weights from the first rank; all ranks must call it.

    Args:
        model: a sharded model.
        weights: `whole_weights`, on the first rank; ignored on the others.

    Raises:
        RuntimeError: the names do not match the model's.
    """
    given = weights if rank() == 0 else {}
    set_model_state_dict(model, given, options=_whole(from_first=True))


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Each rank writes its shard of the state; any number of ranks can read it."""
    write_state(get_optimizer_state_dict(model, optimizer), folder / OPTIMIZER_FOLDER)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_optimizer` wrote."""
    state = get_optimizer_state_dict(model, optimizer)
    read_state(state, folder / OPTIMIZER_FOLDER)
    set_optimizer_state_dict(model, optimizer, state)


def _whole(from_first: bool = False) -> StateDictOptions:
    return StateDictOptions(
        full_state_dict=True, cpu_offload=not from_first, broadcast_from_rank0=from_first
    )
