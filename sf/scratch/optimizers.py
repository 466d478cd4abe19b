"""Muon for the matrices, AdamW for the rest.

On the mini world Muon reached in 200 steps what AdamW had not reached in 400 (docs/mini-world.md).
Embeddings, norms, biases and convolution kernels go to AdamW, as Muon's authors advise.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["hybrid_optimizers", "scale_rates", "step_all"]

_MUON_FACTOR = 10.0
_MAX_NORM = 1.0


def hybrid_optimizers(
    parameters: Iterable[tuple[str, nn.Parameter]], rate: float
) -> list[torch.optim.Optimizer]:
    """Optimizers over the parameters that require gradients.

    Args:
        parameters: (name, parameter) pairs.
        rate: AdamW's learning rate; Muon's is ten times as large.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            matrix = parameter.ndim == 2 and "embed_tokens" not in name
            (matrices if matrix else others).append(parameter)
    found: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=_MUON_FACTOR * rate, weight_decay=0.01, adjust_lr_fn="original"
        ),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return found


def scale_rates(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to `share` of its full value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * share


def step_all(optimizers: Iterable[torch.optim.Optimizer], loss: Tensor) -> None:
    """Backpropagate, clip the gradient's norm to 1 and step."""
    chosen = list(optimizers)
    for optimizer in chosen:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    groups = (group for optimizer in chosen for group in optimizer.param_groups)
    torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], _MAX_NORM)
    for optimizer in chosen:
        optimizer.step()
