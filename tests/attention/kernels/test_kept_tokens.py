"""Gathering and spreading tokens, in Triton's interpreter or compiled on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE, draw

from sf.attention.kernels.kept_tokens import gather_ragged, gather_tokens, spread_tokens


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_qwens_shape_on_the_device(dtype):
    parts = [
        torch.randn(2, 9000, heads, 128, device=DEVICE, dtype=dtype).transpose(1, 2)
        for heads in (28, 4, 4)
    ]
    order = torch.stack([torch.randperm(9000) for _ in range(2)]).to(DEVICE)
    index = order[:, 5001:].sort(-1).values
    query, key, value, slot = gather_tokens(*parts, index, 4096)
    for part, made in zip(parts, (query, key, value), strict=True):
        for row in range(2):
            assert torch.equal(made[row, :3999], part[row].transpose(0, 1)[index[row]])
    kept = torch.zeros(2, 9000, dtype=torch.bool, device=DEVICE).scatter_(1, index, True)
    out = spread_tokens(query, slot)
    assert torch.equal(out, parts[0].transpose(1, 2) * kept[..., None, None])


def inputs(dtype, size, length=150, transposed=True):
    parts = [
        draw([length] * 2, length, heads, size, dtype, heads, transposed) for heads in (6, 2, 3)
    ]
    # Equal counts of KV heads, and strides of their own.
    return parts[0], parts[1], parts[2][:, 1:]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 20), (torch.bfloat16, 16)])
def test_gathered_tokens_are_the_indexed_columns(dtype, size, transposed):
    """More tokens than a program takes, head sizes that fill no tile, room behind the row."""
    parts = inputs(dtype, size, transposed=transposed)
    order = torch.stack([torch.randperm(150) for _ in range(2)]).to(DEVICE)
    index = order[:, 60:].sort(-1).values[:, ::1]
    *gathered, slot = gather_tokens(*parts, index, 100)
    padded = torch.cat([index, index[:, -1:].expand(-1, 10)], dim=1)
    for part, made in zip(parts, gathered, strict=True):
        assert made.is_contiguous()
        for row in range(2):
            assert torch.equal(made[row], part[row].transpose(0, 1)[padded[row]])
    wanted = torch.full((2, 150), -1, dtype=torch.int32, device=DEVICE)
    wanted.scatter_(1, index, torch.arange(90, dtype=torch.int32, device=DEVICE).expand(2, -1))
    assert torch.equal(slot, wanted)


@pytest.mark.parametrize("lengths", [[90, 30], [0, 90], [65, 90], [90, 90]])
def test_ragged_rows_are_packed_one_behind_the_other(lengths):
    parts = inputs(torch.float32, 20)
    index = torch.stack([torch.randperm(150) for _ in range(2)])[:, :90].to(DEVICE)
    ends = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device=DEVICE)
    packed, whole, slot = gather_ragged(*parts, index, ends, sum(lengths))
    last = [index[row, 90 - count :] for row, count in enumerate(lengths)]
    for part, made in zip(parts, packed, strict=True):
        rows = [part[row].transpose(0, 1)[where] for row, where in enumerate(last)]
        assert torch.equal(made, torch.cat(rows))
    for part, made in zip(parts[1:], whole, strict=True):
        for row in range(2):
            assert torch.equal(made[row], part[row].transpose(0, 1)[index[row]])
    wanted = torch.full((2, 150), -1, dtype=torch.int32, device=DEVICE)
    wanted[0, last[0]] = torch.arange(lengths[0], dtype=torch.int32, device=DEVICE)
    wanted[1, last[1]] = torch.arange(*ends[1:].tolist(), dtype=torch.int32, device=DEVICE)
    assert torch.equal(slot, wanted)


def test_an_index_may_be_a_view():
    """The layout's index is the end of a longer row."""
    parts = inputs(torch.float32, 16, length=9)
    order = torch.tensor([[3, 0, 1, 8], [5, 2, 4, 7]], device=DEVICE)
    view, whole = (gather_tokens(*parts, i, 3) for i in (order[:, 1:], order[:, 1:].contiguous()))
    for left, right in zip(view, whole, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_spread_puts_tokens_back_between_zeros(dtype, transposed):
    part = draw([80] * 2, 80, 3, 20, dtype, 1, transposed).transpose(1, 2)
    slot = torch.full((2, 130), -1, dtype=torch.int32, device=DEVICE)
    for row in range(2):
        chosen = torch.randperm(130)[:70].sort().values.to(DEVICE)
        slot[row, chosen] = torch.arange(70, dtype=torch.int32, device=DEVICE)
    out = spread_tokens(part, slot)
    assert out.is_contiguous()
    for row in range(2):
        there = slot[row] >= 0
        assert torch.equal(out[row, there], part[row, :70])
        assert (out[row, ~there] == 0).all()
