"""Random queries, keys and paddings of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw(
    lengths: list[int],
    width: int,
    heads: int,
    size: int,
    dtype: torch.dtype,
    seed: int,
    transposed: bool = True,
) -> Tensor:
    """(B, H, L, D) on the device; `transposed` has transformers' memory layout."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width, heads, size)
    part = torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    part = part.transpose(1, 2)
    return part if transposed else part.contiguous()


def left_padded(lengths: list[int], width: int) -> Tensor:
    """bool (B, L)."""
    return (
        torch.arange(width, device=DEVICE) >= width - torch.tensor(lengths, device=DEVICE)[:, None]
    )
