"""The order of a layer's columns: the active ones last, both parts ascending."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE

from sf.attention.forward_state import _ordered


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 300), (3, 77)])
def test_order_equals_a_stable_sort(rows, length, share):
    active = torch.rand(rows, length, device=DEVICE) < share
    order, count = _ordered(active, torch.arange(length, device=DEVICE)[None])
    assert torch.equal(order, active.to(torch.uint8).argsort(dim=-1, stable=True))
    assert torch.equal(count, active.sum(-1))
