"""Gathering the active tokens of a layer and putting their output back, one launch each.

PyTorch's operators need a launch for each of queries, keys and values, a copy for padding, and a
fill of the whole output before it is written. No gradient is recorded.

Shape suffixes: B rows of the batch, H query heads, G KV heads, L columns, W active columns of the
widest row, R room (W and padding), T active columns of all rows, C = B + 1, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sf.attention.kernels.tiles import blocks, padded

__all__ = ["gather_ragged", "gather_tokens", "spread_tokens"]

# Tokens per program; with 128 dimensions in half precision, 16 KiB.
_TOKENS = 64


# Lengths differ by layer and prompt: no kernel is compiled again for one divisible by 16.
@triton.jit(do_not_specialize=["width", "room", "length", "stride_ib"])
def _gather(
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    index_ptr: tl.tensor,
    query_out_ptr: tl.tensor,
    key_out_ptr: tl.tensor,
    value_out_ptr: tl.tensor,
    key_padded_ptr: tl.tensor,
    value_padded_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    stride_qb: tl.tensor,
    stride_qh: tl.tensor,
    stride_ql: tl.tensor,
    stride_qd: tl.tensor,
    stride_kb: tl.tensor,
    stride_kg: tl.tensor,
    stride_kl: tl.tensor,
    stride_kd: tl.tensor,
    stride_vb: tl.tensor,
    stride_vg: tl.tensor,
    stride_vl: tl.tensor,
    stride_vd: tl.tensor,
    stride_ib: tl.tensor,
    stride_iw: tl.tensor,
    width: tl.tensor,
    room: tl.tensor,
    length: tl.tensor,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    RAGGED: tl.constexpr,
) -> None:
    """Grid (H + 2 G, R / BLOCK_T, B): one head of one block of tokens.

    RAGGED packs each row's last tokens behind those of the row before, and also stores keys and
    values of all W.
    """
    head = tl.program_id(0)
    batch = tl.program_id(2).to(tl.int64)
    slot = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    # Room behind a row repeats its last token, which no earlier query sees.
    entry = tl.minimum(slot, width - 1)
    column = tl.load(index_ptr + batch * stride_ib + entry * stride_iw).to(tl.int64)
    place = tl.arange(0, BLOCK_D)
    within = (place < HEAD_DIM)[None, :]
    inside = (slot < room)[:, None] & within
    padded_line = (batch * room + slot)[:, None]
    line = padded_line
    stored = inside
    if RAGGED:
        end = tl.load(ends_ptr + batch + 1)
        row_slot = slot + end - width
        line = row_slot[:, None].to(tl.int64)
        stored = inside & (row_slot >= tl.load(ends_ptr + batch))[:, None]
    if head < HEADS:
        _move(
            query_ptr, query_out_ptr, query_out_ptr, batch, head, stride_qb, stride_qh, stride_ql,
            stride_qd, column, place, line, padded_line, inside, stored, HEADS, HEAD_DIM, False,
        )  # fmt: skip
        if head == 0:
            if RAGGED:
                real = (slot < width) & (row_slot >= tl.load(ends_ptr + batch))
                tl.store(slot_ptr + batch * length + column, row_slot, mask=real)
            else:
                tl.store(slot_ptr + batch * length + column, slot, mask=slot < width)
    elif head < HEADS + GROUPS:
        _move(
            key_ptr, key_out_ptr, key_padded_ptr, batch, head - HEADS, stride_kb, stride_kg,
            stride_kl, stride_kd, column, place, line, padded_line, inside, stored, GROUPS,
            HEAD_DIM, RAGGED,
        )  # fmt: skip
    else:
        _move(
            value_ptr, value_out_ptr, value_padded_ptr, batch, head - HEADS - GROUPS, stride_vb,
            stride_vg, stride_vl, stride_vd, column, place, line, padded_line, inside, stored,
            GROUPS, HEAD_DIM, RAGGED,
        )  # fmt: skip


@triton.jit
def _move(
    part_ptr: tl.tensor,
    out_ptr: tl.tensor,
    padded_ptr: tl.tensor,
    batch: tl.tensor,
    head: tl.tensor,
    stride_b: tl.tensor,
    stride_h: tl.tensor,
    stride_l: tl.tensor,
    stride_d: tl.tensor,
    column: tl.tensor,
    place: tl.tensor,
    line: tl.tensor,
    padded_line: tl.tensor,
    inside: tl.tensor,
    stored: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    """Copy columns of one head to their lines, and to those of a padded buffer."""
    start = part_ptr + batch * stride_b + head.to(tl.int64) * stride_h
    part = tl.load(
        start + column[:, None] * stride_l + place[None, :] * stride_d, mask=inside, other=0.0
    )
    tl.store(out_ptr + (line * HEADS + head) * HEAD_DIM + place[None, :], part, mask=stored)
    if PADDED:
        out = padded_ptr + (padded_line * HEADS + head) * HEAD_DIM + place[None, :]
        tl.store(out, part, mask=inside)


@triton.jit(do_not_specialize=["length"])
def _spread(
    part_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    out_ptr: tl.tensor,
    stride_pb: tl.tensor,
    stride_pr: tl.tensor,
    stride_ph: tl.tensor,
    stride_pd: tl.tensor,
    length: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Grid (H, L / BLOCK_T, B): one head of one block of columns."""
    head = tl.program_id(0)
    batch = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot = tl.load(slot_ptr + batch * length + column, mask=column < length, other=-1)
    place = tl.arange(0, BLOCK_D)
    inside = (place < HEAD_DIM)[None, :]
    start = part_ptr + batch * stride_pb + head.to(tl.int64) * stride_ph
    part = tl.load(
        start + slot.to(tl.int64)[:, None] * stride_pr + place[None, :] * stride_pd,
        mask=(slot >= 0)[:, None] & inside,
        other=0.0,
    )
    line = (batch * length + column)[:, None]
    out = out_ptr + (line * HEADS + head) * HEAD_DIM + place[None, :]
    tl.store(out, part, mask=(column < length)[:, None] & inside)


@torch.no_grad()
def gather_tokens(
    query_BHLD: Tensor, key_BGLD: Tensor, value_BGLD: Tensor, index_BW: Tensor, room: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The indexed columns of each row, and `room` - W copies of the last one behind them.

    Args:
        query_BHLD, key_BGLD, value_BGLD: one dtype and head size, any strides.
        index_BW: int64, distinct columns of each row; W is at least 1.
        room: R, at least W.

    Returns:
        Query (B, R, H, D), key and value (B, R, G, D), contiguous, and slot_BL, int32: the place
        of each column among the W of its row, or -1. No gradient.
    """
    batch, heads, _, size = query_BHLD.shape
    query = query_BHLD.new_empty(batch, room, heads, size)
    key, value = (query.new_empty(batch, room, key_BGLD.shape[1], size) for _ in range(2))
    parts = query_BHLD, key_BGLD, value_BGLD
    slot = _launch(*parts, index_BW, (query, key, value), (key, value), room, None)
    return query, key, value, slot


@torch.no_grad()
def gather_ragged(
    query_BHLD: Tensor,
    key_BGLD: Tensor,
    value_BGLD: Tensor,
    index_BW: Tensor,
    ends_C: Tensor,
    total: int,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Each row's last indexed columns, one row behind the other.

    Args:
        query_BHLD, key_BGLD, value_BGLD, index_BW: see `gather_tokens`.
        ends_C: int32, where the rows end in the packed buffer, from 0 on ("cu_seqlens").
        total: T.

    Returns:
        Packed query (T, H, D), key and value (T, G, D); key and value of all indexed columns
        (B, W, G, D); and slot_BL, int32: the packed place of each column, or -1. No gradient.
    """
    batch, heads, _, size = query_BHLD.shape
    groups, width = key_BGLD.shape[1], index_BW.shape[1]
    query = query_BHLD.new_empty(total, heads, size)
    key, value = (query.new_empty(total, groups, size) for _ in range(2))
    whole = query.new_empty(batch, width, groups, size), query.new_empty(batch, width, groups, size)
    parts = query_BHLD, key_BGLD, value_BGLD
    slot = _launch(*parts, index_BW, (query, key, value), whole, width, ends_C)
    return (query, key, value), whole, slot


def _launch(
    query_BHLD: Tensor,
    key_BGLD: Tensor,
    value_BGLD: Tensor,
    index_BW: Tensor,
    out: tuple[Tensor, Tensor, Tensor],
    whole: tuple[Tensor, Tensor],
    room: int,
    ends_C: Tensor | None,
) -> Tensor:
    """Fill the outputs; returns slot_BL."""
    batch, heads, length, size = query_BHLD.shape
    groups, width = key_BGLD.shape[1], index_BW.shape[1]
    slot = torch.full((batch, length), -1, dtype=torch.int32, device=query_BHLD.device)
    strides = (*query_BHLD.stride(), *key_BGLD.stride(), *value_BGLD.stride(), *index_BW.stride())
    with torch.cuda.device_of(slot):
        _gather[(heads + 2 * groups, blocks(room, _TOKENS), batch)](
            query_BHLD, key_BGLD, value_BGLD, index_BW, *out, *whole, slot,
            slot if ends_C is None else ends_C, *strides, width, room, length,
            HEADS=heads, GROUPS=groups, HEAD_DIM=size, BLOCK_D=padded(size), BLOCK_T=_TOKENS,
            RAGGED=ends_C is not None,
        )  # fmt: skip
    return slot


@torch.no_grad()
def spread_tokens(part_BRHD: Tensor, slot_BL: Tensor) -> Tensor:
    """Each column's entry of `part_BRHD`, zeros where its slot is -1.

    Args:
        part_BRHD: any strides.
        slot_BL: int32, contiguous, as `gather_tokens` returns it.

    Returns:
        (B, L, H, D), contiguous. No gradient.
    """
    batch, length = slot_BL.shape
    heads, size = part_BRHD.shape[2:]
    out = part_BRHD.new_empty(batch, length, heads, size)
    with torch.cuda.device_of(out):
        _spread[(heads, blocks(length, _TOKENS), batch)](
            part_BRHD, slot_BL, out, *part_BRHD.stride(), length,
            HEADS=heads, HEAD_DIM=size, BLOCK_D=padded(size), BLOCK_T=_TOKENS,
        )  # fmt: skip
    return out
