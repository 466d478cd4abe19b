"""Fused attention mass of the probe queries: steps 1-2 of ZipVL (arXiv 2410.08584).

The scores of heads x probes x length are computed twice in tiles and never stored:

    1. `_row_statistics`: per query row and stretch of keys, the largest score and the sum of
       exponentials; `_merge_statistics` merges a row's stretches into one log-sum-exp. The first
       stretch also copies the probes' queries and columns into buffers for the second pass.
    2. `_key_mass`: per key, the sum of exp(score - log-sum-exp) over the rows that see it.

Every sum has a fixed order, without atomics, so equal inputs give equal bits.

Shape suffixes: B rows of the batch, H query heads, G KV heads, R = H / G, P probes, L columns,
D head size, S stretches of keys, M = P * R query rows of a KV head, probe by probe.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sf.attention.kernels.tiles import (
    Tiles,
    blocks,
    padded,
    power_of_two,
    shared_memory,
    tiles_for,
)
from sf.errors import ConfigError

__all__ = ["probe_mass"]

# Keys per program of the first pass. Fixed, so that the splitting of sums depends neither on the
# batch nor on the device.
_STRETCH = 1024
_LOG2_E = 1.4426950408889634
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def _row_statistics(
    query_ptr: tl.tensor,
    at_ptr: tl.tensor,
    present_ptr: tl.tensor,
    key_ptr: tl.tensor,
    valid_ptr: tl.tensor,
    picked_ptr: tl.tensor,
    column_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    stride_qb: tl.tensor,
    stride_qh: tl.tensor,
    stride_ql: tl.tensor,
    stride_qd: tl.tensor,
    stride_cb: tl.tensor,
    stride_cp: tl.tensor,
    stride_pb: tl.tensor,
    stride_pp: tl.tensor,
    stride_kb: tl.tensor,
    stride_kg: tl.tensor,
    stride_kl: tl.tensor,
    stride_kd: tl.tensor,
    stride_vb: tl.tensor,
    stride_vl: tl.tensor,
    probes: tl.tensor,
    length: tl.tensor,
    scale_log2: tl.tensor,
    GROUPS: tl.constexpr,
    REPEATS: tl.constexpr,
    STRETCH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """Grid (M / BLOCK_M, S, B * G): peak and total, both (B * G, S, M).

    Picked is (B, P, H, D); columns are int32 (B, P), -1 for absent probes.
    """
    batch = tl.program_id(2) // GROUPS
    group = tl.program_id(2) % GROUPS
    rows = probes * REPEATS
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    used = row < rows
    probe = row // REPEATS
    at_probe = tl.load(
        at_ptr + batch.to(tl.int64) * stride_cb + probe * stride_cp, mask=used, other=0
    ).to(tl.int64)
    present = tl.load(
        present_ptr + batch.to(tl.int64) * stride_pb + probe * stride_pp, mask=used, other=0
    )
    column = tl.where(present != 0, at_probe, -1).to(tl.int32)
    place = tl.arange(0, BLOCK_D)
    head = group * REPEATS + row % REPEATS
    start_q = query_ptr + batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
    inside = used[:, None] & (place < HEAD_DIM)[None, :]
    query = tl.load(
        (start_q + at_probe * stride_ql)[:, None] + place[None, :] * stride_qd,
        mask=inside,
        other=0.0,
    )
    if tl.program_id(1) == 0:
        line = (batch * probes + probe) * (GROUPS * REPEATS) + head
        tl.store(picked_ptr + line[:, None] * HEAD_DIM + place[None, :], query, mask=inside)
        # Every row of a probe stores the same number.
        tl.store(column_ptr + batch * probes + probe, column, mask=used & (group == 0))
    if UPCAST:
        query = query.to(tl.float32)
    key_base = key_ptr + batch.to(tl.int64) * stride_kb + group.to(tl.int64) * stride_kg
    valid_base = valid_ptr + batch.to(tl.int64) * stride_vb
    first = tl.program_id(1) * STRETCH
    # No row of this tile sees beyond its last probe.
    stop = tl.minimum(first + STRETCH, tl.max(column, 0) + 1)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(first, stop, BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        key = tl.load(
            key_base + at.to(tl.int64)[:, None] * stride_kl + place[None, :] * stride_kd,
            mask=(at < length)[:, None] & (place < HEAD_DIM)[None, :],
            other=0.0,
        )
        real = tl.load(valid_base + at * stride_vl, mask=at < length, other=0)
        if UPCAST:
            key = key.to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        seen = (at[None, :] <= column[:, None]) & (real != 0)[None, :]
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        # -inf minus -inf is NaN, so rows that have seen nothing yet use the base 0.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(peak - base) + tl.sum(tl.exp2(score - base[:, None]), 1)
        peak = higher
    out = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * rows + row
    tl.store(peak_ptr + out, peak, mask=used)
    tl.store(total_ptr + out, total, mask=used)


@triton.jit
def _merge_statistics(
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    stretches: tl.tensor,
    rows: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (M / BLOCK, B * G): base-2 log-sum-exp (B * G, M), +inf for a row that sees nothing."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    used = row < rows
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for stretch in tl.range(0, stretches, num_stages=4):
        at = (tl.program_id(1) * stretches + stretch) * rows + row
        part = tl.load(peak_ptr + at, mask=used, other=float("-inf"))
        share = tl.load(total_ptr + at, mask=used, other=0.0)
        higher = tl.maximum(peak, part)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(peak - base) + share * tl.exp2(part - base)
        peak = higher
    # exp2(score - inf) is 0, so such a row adds nothing in the second pass.
    merged = tl.where(total > 0, peak + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    tl.store(sum_ptr + tl.program_id(1) * rows + row, merged, mask=used)


@triton.jit
def _key_mass(
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    column_ptr: tl.tensor,
    valid_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    stride_kb: tl.tensor,
    stride_kg: tl.tensor,
    stride_kl: tl.tensor,
    stride_kd: tl.tensor,
    stride_vb: tl.tensor,
    stride_vl: tl.tensor,
    probes: tl.tensor,
    length: tl.tensor,
    scale_log2: tl.tensor,
    GROUPS: tl.constexpr,
    REPEATS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """Grid (L / BLOCK_N, B * G): mean over the heads' share, mass (B * G, L)."""
    batch = tl.program_id(1) // GROUPS
    group = tl.program_id(1) % GROUPS
    rows = probes * REPEATS
    heads = GROUPS * REPEATS
    start = tl.program_id(0) * BLOCK_N
    at = start + tl.arange(0, BLOCK_N)
    place = tl.arange(0, BLOCK_D)
    key_base = key_ptr + batch.to(tl.int64) * stride_kb + group.to(tl.int64) * stride_kg
    key = tl.load(
        key_base + at.to(tl.int64)[:, None] * stride_kl + place[None, :] * stride_kd,
        mask=(at < length)[:, None] & (place < HEAD_DIM)[None, :],
        other=0.0,
    )
    if UPCAST:
        key = key.to(tl.float32)
    # Probes ascend, with absent ones (-1) last, which gives the first that sees this tile's keys.
    every = tl.arange(0, BLOCK_P)
    columns = tl.load(column_ptr + batch * probes + every, mask=every < probes, other=-1)
    blind = tl.sum(((columns >= 0) & (columns < start)).to(tl.int32), 0)
    mass = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(blind * REPEATS // BLOCK_M * BLOCK_M, rows, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        used = row < rows
        probe = row // REPEATS
        column = tl.load(column_ptr + batch * probes + probe, mask=used, other=-1)
        merged = tl.load(sum_ptr + tl.program_id(1) * rows + row, mask=used, other=float("inf"))
        line = (batch * probes + probe) * heads + group * REPEATS + row % REPEATS
        query = tl.load(
            query_ptr + line[:, None] * HEAD_DIM + place[None, :],
            mask=used[:, None] & (place < HEAD_DIM)[None, :],
            other=0.0,
        )
        if UPCAST:
            query = query.to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        score = tl.where(at[None, :] <= column[:, None], score, float("-inf"))
        mass += tl.exp2(score - merged[:, None])
    real = tl.load(
        valid_ptr + batch.to(tl.int64) * stride_vb + at * stride_vl, mask=at < length, other=0
    )
    share = tl.where(real != 0, tl.sum(mass, 0) / heads, 0.0)
    tl.store(mass_ptr + tl.program_id(1) * length + at, share, mask=at < length)


@torch.no_grad()
def probe_mass(
    query_BHLD: Tensor,
    key_BGLD: Tensor,
    column_BP: Tensor,
    present_BP: Tensor,
    valid_BL: Tensor,
    scaling: float,
    tiles: Tiles | None = None,
) -> Tensor:
    """Attention that each key receives from the probe queries, mean over heads, summed over probes.

    Memory beyond the inputs: the selected queries and B * G * (2 * S * M + L) float32 numbers.

    Args:
        query_BHLD, key_BGLD: float16, bfloat16 or float32, any strides; H is a multiple of G.
        column_BP: int64, the probes' columns, ascending; only those with `present_BP` count, and
            the others come last.
        valid_BL: bool, False on padding (on either side).
        scaling: factor on the scores, before the softmax.
        tiles: by default those of `tiles_for`.

    Returns:
        float32 (B, L), 0 on padding. A row sums to its number of probes. No gradient.

    Raises:
        ConfigError: shapes do not match, or the dtype is not supported.
    """
    _check(query_BHLD, key_BGLD, column_BP, present_BP, valid_BL)
    batch, heads, length, size = query_BHLD.shape
    groups, probes, device = key_BGLD.shape[1], column_BP.shape[1], query_BHLD.device
    rows = probes * (heads // groups)
    if tiles is None:
        tiles = tiles_for(size, query_BHLD.dtype, shared_memory(device))
    picked_BPHD = query_BHLD.new_empty(batch, probes, heads, size)
    column = torch.empty(batch, probes, dtype=torch.int32, device=device)
    present, valid = (mask.view(torch.uint8) for mask in (present_BP, valid_BL))
    shapes = (*key_BGLD.stride(), *valid.stride(), probes, length)
    sizes = {
        "GROUPS": groups,
        "REPEATS": heads // groups,
        "HEAD_DIM": size,
        "BLOCK_D": padded(size),
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.keys,
        # NumPy has no bfloat16, so Triton's interpreter multiplies in float32.
        "UPCAST": device.type == "cpu" and query_BHLD.dtype == torch.bfloat16,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    scale = scaling * _LOG2_E
    # Triton launches on the current device, which may differ from the tensors'.
    with torch.cuda.device_of(query_BHLD):
        stretches = blocks(length, _STRETCH)
        statistics = batch * groups, stretches, rows
        peak = torch.empty(statistics, dtype=torch.float32, device=device)
        total = torch.empty(statistics, dtype=torch.float32, device=device)
        grid = (blocks(rows, tiles.rows), stretches, batch * groups)
        _row_statistics[grid](
            query_BHLD, column_BP, present, key_BGLD, valid, picked_BPHD, column, peak, total,
            *query_BHLD.stride(), *column_BP.stride(), *present.stride(), *shapes, scale,
            STRETCH=_STRETCH, **sizes,
        )  # fmt: skip
        # Other buffers are allocated while the device works.
        merged = torch.empty(batch * groups, rows, dtype=torch.float32, device=device)
        _merge_statistics[(blocks(rows, 128), batch * groups)](
            peak, total, merged, stretches, rows, BLOCK=128
        )
        mass_BGL = torch.empty(batch, groups, length, dtype=torch.float32, device=device)
        _key_mass[(blocks(length, tiles.keys), batch * groups)](
            picked_BPHD, key_BGLD, column, valid, merged, mass_BGL, *shapes, scale,
            BLOCK_P=power_of_two(probes), **sizes,
        )  # fmt: skip
    return mass_BGL.sum(1)


def _check(query: Tensor, key: Tensor, column: Tensor, present: Tensor, valid: Tensor) -> None:
    if query.ndim != 4 or key.ndim != 4:
        raise ConfigError("query, key", (query.ndim, key.ndim), "4 dimensions each")
    batch, heads, length, size = query.shape
    if key.shape != (batch, key.shape[1], length, size) or heads % key.shape[1]:
        raise ConfigError(
            "key", tuple(key.shape), f"must match a query of shape {tuple(query.shape)}"
        )
    if query.dtype not in _DTYPES or key.dtype != query.dtype:
        raise ConfigError("dtype", (query.dtype, key.dtype), f"both one of {_DTYPES}")
    if column.ndim != 2 or column.shape[0] != batch or column.shape[1] == 0:
        raise ConfigError("column", tuple(column.shape), f"({batch}, at least one probe)")
    if present.shape != column.shape or present.dtype != torch.bool:
        raise ConfigError("present", tuple(present.shape), f"bool {tuple(column.shape)}")
    if valid.shape != (batch, length) or valid.dtype != torch.bool:
        raise ConfigError("valid", tuple(valid.shape), f"bool {(batch, length)}")
