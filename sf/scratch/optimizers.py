"""Muon for the matrices, AdamW for the other parameters.

torch's Muon orthogonalises matrix by matrix in bfloat16: on a CPU without bfloat16 instructions
that took most of a step (e0a54be: 5.1 of 7.4 s for 15 steps of the tower). Here it runs in float32,
for all matrices of one shape at once.

On the mini world, 200 steps of Muon surpassed 400 of AdamW (docs/mini-world.md). Embeddings,
norms, biases and convolution kernels use AdamW, as Muon's authors recommend.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "hybrid_optimizers", "orthogonalised", "scale_rates", "step_all"]

_MUON_FACTOR = 10.0
_MAX_NORM = 1.0
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of X, (XX^T) X and (XX^T)^2 X, from Muon's authors."""
_ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """US'V^T of each matrix USV^T, with S' near 1, by Newton-Schulz iterations.

    Args:
        matrices: [..., rows, columns]; the computation uses their floating dtype.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan et al., 2024) with Nesterov momentum and decoupled weight decay.

    Args:
        matrices: [rows, columns] each.
        lr: rate of square and wide matrices; multiplied by sqrt(rows / columns) for tall ones.
        momentum: of the running mean of gradients.
        weight_decay: weights shrink by this share of `lr` per step.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient are unchanged."""
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    of_shape.setdefault(weight.shape, []).append(weight)
            for weights in of_shape.values():
                self._step_together(weights, group)

    def _step_together(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch.stack(gradients).lerp(torch.stack(momenta), group["momentum"])
        rows, columns = weights[0].shape
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(orthogonalised(updates).unbind()), alpha=-rate)


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
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=_MUON_FACTOR * rate),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return optimizers


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
