"""Packing and unpacking, and attention on packed tokens."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE, draw

from sf.attention.backends import packed
from sf.attention.backends.packed import (
    Packing,
    attend_planned,
    attend_rows,
    attend_uniform,
)


def example():
    """Two rows of three columns: the first keeps column 2, the second 0 and 2."""
    return Packing(torch.tensor([[1, 2], [0, 2]], device=DEVICE), [1, 2], 3)


def test_places_and_ends():
    packing = example()
    assert packing.place_T.tolist() == [2, 3, 5]
    assert packing.slot_T.tolist() == [1, 2, 3]
    assert packing.ends_C.tolist() == [0, 1, 3]
    assert packing.ends_C.dtype == torch.int32
    assert not packing.uniform


@pytest.mark.parametrize("transposed", [False, True])
def test_take_and_spread_undo_each_other(transposed):
    part = draw([3, 3], 3, 4, 8, torch.float32, 1, transposed)
    packing = example()
    taken = packing.take(part)
    assert torch.equal(taken, torch.stack([part[0, :, 2], part[1, :, 0], part[1, :, 2]]))
    back = packing.spread(taken)
    assert back.shape == (2, 3, 4, 8)
    kept = torch.tensor([[False, False, True], [True, False, True]], device=DEVICE)
    assert torch.equal(back[kept], part.transpose(1, 2)[kept])
    assert (back[~kept] == 0).all()


def test_one_row_of_any_layout_is_not_copied_whole():
    part = draw([5], 5, 2, 8, torch.float32, 2, transposed=False)
    packing = Packing(torch.tensor([[1, 4]], device=DEVICE), [2], 5)
    assert torch.equal(packing.take(part), part[0, :, [1, 4]].transpose(0, 1))


def test_an_empty_row_takes_no_room():
    packing = Packing(torch.tensor([[0, 1], [1, 2]], device=DEVICE), [0, 2], 3)
    assert packing.place_T.tolist() == [4, 5]
    assert packing.ends_C.tolist() == [0, 0, 2]


def test_padded_rows_are_the_indexed_columns():
    part = draw([3, 3], 3, 2, 8, torch.float32, 3)
    padded = example().take_padded(part)
    assert torch.equal(padded[0], part[0, :, 1:].transpose(0, 1))
    assert torch.equal(padded[1], part[1, :, [0, 2]].transpose(0, 1))


def test_rows_and_one_call_agree():
    """With equal lengths, a call per row and one for all give the same attention and gradients."""
    index = torch.tensor([[0, 2, 5, 6], [1, 2, 3, 7]], device=DEVICE)
    packing = Packing(index, [4, 4], 8)
    parts = [
        packing.take(draw([8, 8], 8, heads, 16, torch.float32, heads)).requires_grad_()
        for heads in (6, 2, 2)
    ]
    whole = attend_uniform(*parts, packing, 0.25, 0.0)
    rows = attend_rows(*parts, packing, 0.25, 0.0)
    torch.testing.assert_close(whole, rows)
    probe = torch.randn_like(whole)
    for left, right in zip(
        torch.autograd.grad((whole * probe).sum(), parts),
        torch.autograd.grad((rows * probe).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("width", [5, 512, 700])
def test_padding_to_a_planned_length_changes_nothing(width):
    """Zeros after each row: causal queries do not see them, and they get no gradient."""
    index = torch.arange(width, device=DEVICE).expand(2, -1)
    packing = Packing(index, [width, width], width)
    parts = [
        packing.take(draw([width] * 2, width, heads, 16, torch.float32, heads)).requires_grad_()
        for heads in (6, 2, 2)
    ]
    plain = attend_uniform(*parts, packing, 0.25, 0.0)
    planned = attend_planned(*parts, packing, 0.25, 0.0)
    assert planned.shape == plain.shape
    torch.testing.assert_close(planned, plain)
    probe = torch.randn_like(plain)
    for left, right in zip(
        torch.autograd.grad((planned * probe).sum(), parts),
        torch.autograd.grad((plain * probe).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_cudnn_sees_few_lengths(monkeypatch):
    """A plan is built for each exact shape: 40 kept counts must not become 40 plans."""
    lengths = set()
    plain = packed.attend

    def spy(query, *given, **named):
        assert named["plans"]
        lengths.add(query.shape[2])
        return plain(query, *given, **named)

    monkeypatch.setattr(packed, "attend", spy)
    for width in range(480, 640, 4):
        packing = Packing(torch.arange(width, device=DEVICE)[None], [width], width)
        parts = [torch.zeros(width, heads, 8, device=DEVICE) for heads in (2, 1, 1)]
        attend_planned(*parts, packing, 0.25, 0.0)
    assert lengths == {512, 1024}
