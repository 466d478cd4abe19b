"""Rotary position embedding of one new token per row, and its place in the cache, in one launch.

Shape suffixes: B rows, H query heads, G KV heads, D head size, C entries of the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sf.attention.kernels.tiles import padded
from sf.errors import ConfigError

__all__ = ["rotate_and_store"]


@triton.jit
def _rotate_and_store(
    projected_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    entry_ptr: tl.tensor,
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    stride_kb: tl.tensor,
    stride_kg: tl.tensor,
    stride_kl: tl.tensor,
    stride_vb: tl.tensor,
    stride_vg: tl.tensor,
    stride_vl: tl.tensor,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid (H + 2 G, B): a head of a query, then of a key, then of a value."""
    head = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    place = tl.arange(0, BLOCK_D)
    inside = place < HEAD_DIM
    line = (batch * (HEADS + 2 * GROUPS) + head) * HEAD_DIM
    part = tl.load(projected_ptr + line + place, mask=inside, other=0.0)
    entry = tl.load(entry_ptr + batch)
    if head < HEADS + GROUPS:
        # The halves rotate with each other: (x, y) -> (x cos - y sin, y cos + x sin).
        low = place < HEAD_DIM // 2
        partner = tl.where(low, place + HEAD_DIM // 2, place - HEAD_DIM // 2)
        turned = tl.load(projected_ptr + line + partner, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + batch * HEAD_DIM + place, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + batch * HEAD_DIM + place, mask=inside, other=0.0).to(tl.float32)
        rotated = part.to(tl.float32) * cos + tl.where(low, -turned, turned) * sin
        rotated = rotated.to(part.dtype)
        if head < HEADS:
            tl.store(query_ptr + (batch * HEADS + head) * HEAD_DIM + place, rotated, mask=inside)
        else:
            target = batch * stride_kb + (head - HEADS) * stride_kg + entry * stride_kl
            tl.store(key_ptr + target + place, rotated, mask=inside)
    else:
        target = batch * stride_vb + (head - HEADS - GROUPS) * stride_vg + entry * stride_vl
        tl.store(value_ptr + target + place, part, mask=inside)


@torch.no_grad()
def rotate_and_store(
    projected_BX: Tensor,
    cos_BD: Tensor,
    sin_BD: Tensor,
    key_BGCD: Tensor,
    value_BGCD: Tensor,
    entry_B: Tensor,
) -> Tensor:
    """Rotate queries and keys by their positions; write keys and values to the rows' entries.

    Args:
        projected_BX: contiguous, each row its H query heads, G key heads and G value heads.
        cos_BD, sin_BD: of the positions, contiguous.
        key_BGCD, value_BGCD: written in place; D is contiguous.
        entry_B: int64, below C.

    Returns:
        (B, H, D), the rotated queries.

    Raises:
        ConfigError: shapes, dtypes or strides do not match.
    """
    batch, groups, _, size = key_BGCD.shape
    heads = projected_BX.shape[1] // size - 2 * groups
    shapes = [tuple(part.shape) for part in (projected_BX, cos_BD, sin_BD, value_BGCD, entry_B)]
    wanted = [
        (batch, (heads + 2 * groups) * size),
        *[(batch, size)] * 2,
        tuple(key_BGCD.shape),
        (batch,),
    ]
    if shapes != wanted or heads < 1 or size % 2:
        raise ConfigError(
            "projected, cos, sin, value, entry", shapes, f"{wanted}, D even and H at least 1"
        )
    parts = (projected_BX, cos_BD, sin_BD, key_BGCD, value_BGCD)
    dense = all(part.is_contiguous() for part in (*parts[:3], entry_B))
    aligned = dense and key_BGCD.stride(3) == value_BGCD.stride(3) == 1
    if not aligned or len({part.dtype for part in parts}) > 1 or entry_B.dtype != torch.long:
        found = [(part.dtype, part.stride()) for part in (*parts, entry_B)]
        raise ConfigError("projected, key, value", found, "one dtype, last stride 1, entry int64")
    query_BHD = projected_BX.new_empty(batch, heads, size)
    with torch.cuda.device_of(projected_BX):
        _rotate_and_store[(heads + 2 * groups, batch)](
            projected_BX, cos_BD, sin_BD, entry_B, query_BHD, key_BGCD, value_BGCD,
            *key_BGCD.stride()[:3], *value_BGCD.stride()[:3],
            HEADS=heads, GROUPS=groups, HEAD_DIM=size, BLOCK_D=padded(size), num_warps=1,
        )  # fmt: skip
    return query_BHD
