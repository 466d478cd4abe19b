"""Attention of one new token over a cache of any length, with an optional mask.

The cache is split into stretches that run in parallel (as in flash decoding), because a few KV
heads would leave most of the device idle, and PyTorch's flash kernel does not support a mask. Each
stretch gives an unnormalised output, its largest score and its sum; a second kernel joins them in
order.

Shape suffixes: B rows, H query heads, G KV heads, R = H / G, K cached entries, D head size,
S stretches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sf.attention.kernels.tiles import blocks, padded, shared_memory
from sf.errors import ConfigError

__all__ = ["DecodeTile", "decode_attention", "decode_tile"]

# Entries per stretch for caches up to 8192 entries, and above. They depend only on the cache, so a
# row's result is the same in every batch of the same width.
_SHORT, _LONG, _SHORT_CACHE = 256, 512, 8192
_LOG2_E = 1.4426950408889634
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Stretches that are joined at once.
_JOINED = 64


@dataclass(frozen=True)
class DecodeTile:
    """How a cache is read; `make gpu` compares some.

    Attributes:
        stretch: entries of a program. entries: of one tile of K and V, a power of two, at least 16.
        warps: per program. stages: tiles in flight.
    """

    stretch: int
    entries: int
    warps: int = 4
    stages: int = 3


@triton.jit
def _stretches(
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    part_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    stride_kb: tl.tensor,
    stride_kg: tl.tensor,
    stride_kl: tl.tensor,
    stride_kd: tl.tensor,
    stride_vb: tl.tensor,
    stride_vg: tl.tensor,
    stride_vl: tl.tensor,
    stride_vd: tl.tensor,
    stride_mb: tl.tensor,
    stride_ml: tl.tensor,
    entries: tl.tensor,
    scale_log2: tl.tensor,
    GROUPS: tl.constexpr,
    REPEATS: tl.constexpr,
    MASKED: tl.constexpr,
    STRETCH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """Grid (S, B * G): part (B * G, S, R, D), peak and total (B * G, S, R)."""
    batch = (tl.program_id(1) // GROUPS).to(tl.int64)
    group = (tl.program_id(1) % GROUPS).to(tl.int64)
    repeat = tl.arange(0, BLOCK_R)
    place = tl.arange(0, BLOCK_D)
    inside = (repeat < REPEATS)[:, None] & (place < HEAD_DIM)[None, :]
    line = tl.program_id(1) * REPEATS + repeat
    query = tl.load(query_ptr + line[:, None] * HEAD_DIM + place[None, :], mask=inside, other=0.0)
    if UPCAST:
        query = query.to(tl.float32)
    key_base = key_ptr + batch * stride_kb + group * stride_kg
    value_base = value_ptr + batch * stride_vb + group * stride_vg
    peak = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    out = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    first = tl.program_id(0) * STRETCH
    for start in range(first, tl.minimum(first + STRETCH, entries), BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        real = at < entries
        tile = real[:, None] & (place < HEAD_DIM)[None, :]
        wide = at.to(tl.int64)[:, None]
        key = tl.load(
            key_base + wide * stride_kl + place[None, :] * stride_kd, mask=tile, other=0.0
        )
        value = tl.load(
            value_base + wide * stride_vl + place[None, :] * stride_vd, mask=tile, other=0.0
        )
        if MASKED:
            real = tl.load(mask_ptr + batch * stride_mb + at * stride_ml, mask=real, other=0) != 0
        if UPCAST:
            key = key.to(tl.float32)
            value = value.to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        score = tl.where(real[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        # -inf minus -inf is NaN, so rows that have seen nothing yet use the base 0.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weight, 1)
        out = out * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        peak = higher
    slot = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * REPEATS + repeat
    tl.store(peak_ptr + slot, peak, mask=repeat < REPEATS)
    tl.store(total_ptr + slot, total, mask=repeat < REPEATS)
    tl.store(part_ptr + slot[:, None] * HEAD_DIM + place[None, :], out, mask=inside)


@triton.jit
def _join(
    part_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    out_ptr: tl.tensor,
    stretches: tl.tensor,
    REPEATS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:
    """Grid (B * G * R): out (B * G * R, D), 0 if nothing is visible."""
    pair = tl.program_id(0) // REPEATS
    repeat = tl.program_id(0) % REPEATS
    place = tl.arange(0, BLOCK_D)
    peak = -float("inf")
    for first in range(0, stretches, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        slot = (pair * stretches + at) * REPEATS + repeat
        part = tl.load(peak_ptr + slot, mask=at < stretches, other=float("-inf"))
        peak = tl.maximum(peak, tl.max(part, 0))
    base = tl.where(peak == float("-inf"), 0.0, peak)
    out = tl.zeros((BLOCK_D,), tl.float32)
    total = 0.0
    for first in range(0, stretches, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        slot = (pair * stretches + at) * REPEATS + repeat
        part = tl.load(peak_ptr + slot, mask=at < stretches, other=float("-inf"))
        share = tl.exp2(part - base)
        total += tl.sum(share * tl.load(total_ptr + slot, mask=at < stretches, other=0.0), 0)
        tile = (at < stretches)[:, None] & (place < HEAD_DIM)[None, :]
        piece = tl.load(part_ptr + slot[:, None] * HEAD_DIM + place[None, :], mask=tile, other=0.0)
        out += tl.sum(share[:, None] * piece, 0)
    out = out / tl.where(total > 0, total, 1.0)
    tl.store(
        out_ptr + tl.program_id(0) * HEAD_DIM + place,
        out.to(out_ptr.dtype.element_ty),
        mask=place < HEAD_DIM,
    )


@torch.no_grad()
def decode_attention(
    query_BHD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    mask_BK: Tensor | None,
    scaling: float,
    tile: DecodeTile | None = None,
) -> Tensor:
    """Attention of one query per row and head over cached entries.

    Args:
        query_BHD: float16, bfloat16 or float32; H a multiple of G.
        key_BGKD, value_BGKD: of the same dtype, with any strides (views of a larger buffer are
            read in place).
        mask_BK: bool, True where the row may attend; None for everywhere.
        scaling: factor on the scores, before the softmax.
        tile: by default that of `decode_tile`.

    Returns:
        (B, H, D) in the query's dtype, accumulated in float32; 0 for a fully masked row. No
        gradient.

    Raises:
        ConfigError: shapes do not match, or the dtype is not supported.
    """
    _check(query_BHD, key_BGKD, value_BGKD, mask_BK)
    batch, heads, size = query_BHD.shape
    groups, entries, device = key_BGKD.shape[1], key_BGKD.shape[2], query_BHD.device
    repeats = heads // groups
    if tile is None:
        tile = decode_tile(size, query_BHD.dtype, shared_memory(device), entries)
    count = blocks(entries, tile.stretch)
    peak = torch.empty(batch * groups, count, repeats, dtype=torch.float32, device=device)
    total = torch.empty_like(peak)
    part = torch.empty(*peak.shape, size, dtype=torch.float32, device=device)
    out = torch.empty(batch, heads, size, dtype=query_BHD.dtype, device=device)
    # The kernel needs a pointer in any case; without a mask it is not read.
    mask = peak if mask_BK is None else mask_BK.view(torch.uint8)
    mask_strides = (0, 0) if mask_BK is None else mask_BK.stride()
    with torch.cuda.device_of(query_BHD):
        _stretches[(count, batch * groups)](
            query_BHD.contiguous(), key_BGKD, value_BGKD, mask, part, peak, total,
            *key_BGKD.stride(), *value_BGKD.stride(), *mask_strides, entries, scaling * _LOG2_E,
            GROUPS=groups, REPEATS=repeats, MASKED=mask_BK is not None, STRETCH=tile.stretch,
            HEAD_DIM=size, BLOCK_D=padded(size), BLOCK_R=padded(repeats),
            BLOCK_N=tile.entries,
            # NumPy has no bfloat16, so Triton's interpreter multiplies in float32.
            UPCAST=device.type == "cpu" and query_BHD.dtype == torch.bfloat16,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        _join[(batch * heads,)](
            part, peak, total, out, count,
            REPEATS=repeats, HEAD_DIM=size, BLOCK_D=padded(size),
            BLOCK_S=min(_JOINED, padded(count)), num_warps=4,
        )  # fmt: skip
    return out


def decode_tile(head_dim: int, dtype: torch.dtype, available: int, entries: int) -> DecodeTile:
    """The tile in use.

    Args:
        available: bytes of shared memory for one program, for the tiles of K and V in flight.
        entries: of the cache.
    """
    stretch = _SHORT if entries <= _SHORT_CACHE else _LONG
    row_bytes = 2 * padded(head_dim) * dtype.itemsize
    for rows, stages in ((64, 3), (64, 2), (32, 2)):
        # float32 products do not use tensor cores; smaller tiles keep them in registers.
        if dtype == torch.float32 and rows > 32:
            continue
        if rows * stages * row_bytes <= available - 8192:
            return DecodeTile(stretch, rows, 4, stages)
    return DecodeTile(stretch, 16, 4, 1)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    if query.ndim != 3 or key.ndim != 4 or key.shape != value.shape:
        raise ConfigError(
            "query, key, value",
            (tuple(query.shape), tuple(key.shape), tuple(value.shape)),
            "(B, H, D), (B, G, K, D) and (B, G, K, D)",
        )
    batch, heads, size = query.shape
    if (key.shape[0], key.shape[3]) != (batch, size) or heads % key.shape[1] or not key.shape[2]:
        raise ConfigError(
            "key", tuple(key.shape), f"must match a query of shape {tuple(query.shape)}"
        )
    if query.dtype not in _DTYPES or not query.dtype == key.dtype == value.dtype:
        raise ConfigError("dtype", (query.dtype, key.dtype), f"all one of {_DTYPES}")
    if mask is not None and (mask.shape != (batch, key.shape[2]) or mask.dtype != torch.bool):
        raise ConfigError("mask", tuple(mask.shape), f"bool {(batch, key.shape[2])}")
