"""Rotary embedding with the write into the cache, in Triton's interpreter or on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from sf.attention.kernels.rotary import rotate_and_store
from sf.errors import ConfigError

BATCH, HEADS, GROUPS, ENTRIES = 3, 4, 2, 9


def inputs(size, dtype):
    generator = torch.Generator().manual_seed(1)

    def part(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    angle = part(BATCH, size // 2).float().repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    projected = part(BATCH, (HEADS + 2 * GROUPS) * size)
    # Views into larger buffers, as the decode cache hands them over.
    key, value = (part(BATCH + 1, GROUPS, ENTRIES + 2, size)[:BATCH] for _ in range(2))
    entry = torch.tensor([4, 0, 8], device=DEVICE)
    return projected, cos, sin, key, value, entry


@pytest.mark.parametrize(
    ("size", "dtype", "within"),
    [(8, torch.float32, 1e-6), (20, torch.float32, 1e-6), (64, torch.float16, 4e-3)],
)
def test_equals_transformers_and_writes_only_the_entries(size, dtype, within):
    projected, cos, sin, key, value, entry = inputs(size, dtype)
    before = key.clone(), value.clone()
    query = rotate_and_store(projected, cos, sin, key, value, entry)
    heads = projected.view(BATCH, -1, 1, size)
    wanted, rotated = apply_rotary_pos_emb(
        heads[:, :HEADS], heads[:, HEADS:-GROUPS], cos[:, None], sin[:, None]
    )
    assert (query - wanted[:, :, 0]).abs().max() <= within
    row = torch.arange(BATCH, device=DEVICE)
    assert (key[row, :, entry] - rotated[:, :, 0]).abs().max() <= within
    assert torch.equal(value[row, :, entry], heads[:, -GROUPS:, 0])
    for part, old in zip((key, value), before, strict=True):
        part[row, :, entry] = old[row, :, entry]
        assert torch.equal(part, old)


@pytest.mark.parametrize(
    "change",
    [
        lambda p, c, s, k, v, e: (p[:, :-1].contiguous(), c, s, k, v, e),
        lambda p, c, s, k, v, e: (p, c[:2], s, k, v, e),
        lambda p, c, s, k, v, e: (p, c, s, k.half(), v, e),
        lambda p, c, s, k, v, e: (p, c, s, k, v[:, :, :4], e),
        lambda p, c, s, k, v, e: (p, c, s, k, v, e.int()),
    ],
)
def test_mismatched_inputs_are_refused(change):
    with pytest.raises(ConfigError):
        rotate_and_store(*change(*inputs(8, torch.float32)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_equals_transformers_on_the_device(dtype):
    test_equals_transformers_and_writes_only_the_entries(128, dtype, 4e-2)
