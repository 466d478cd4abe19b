"""The tiles of the probe kernels by head size, dtype and shared memory."""

from __future__ import annotations

import pytest
import torch
import triton

from sf.attention.kernels.tiles import Tiles, blocks, padded, power_of_two, tiles_for

KIB = 1024
HOPPER, AMPERE, CONSUMER, SMALL = (kib * KIB for kib in (227, 163, 99, 64))


@pytest.mark.parametrize("available", [HOPPER, AMPERE, CONSUMER, SMALL])
def test_qwens_heads_get_the_tiles_measured_as_fastest(available):
    assert tiles_for(128, torch.bfloat16, available) == Tiles(64, 64, 4, 2) == Tiles()


@pytest.mark.parametrize(
    ("head_dim", "dtype", "available", "rows"),
    [
        (256, torch.bfloat16, HOPPER, 64),
        (256, torch.bfloat16, CONSUMER, 32),  # 96 KiB of operands, and 4 KiB stay reserved
        (256, torch.bfloat16, SMALL, 32),
        (256, torch.float16, 40 * KIB, 16),
        (128, torch.float32, HOPPER, 32),  # no tensor cores: tiles stay in registers
        (80, torch.float16, SMALL, 64),
    ],
)
def test_tiles_shrink_with_shared_memory(head_dim, dtype, available, rows):
    tiles = tiles_for(head_dim, dtype, available)
    assert tiles.rows == tiles.keys == rows
    width = 1 << (head_dim - 1).bit_length()
    operands = (tiles.rows + tiles.stages * tiles.keys) * width * dtype.itemsize
    assert operands <= available - 4 * KIB


def test_extents_are_triton_s():
    for size in (*range(1, 70), 127, 128, 129, 1 << 20):
        assert power_of_two(size) == triton.next_power_of_2(size)
        assert padded(size) == max(16, triton.next_power_of_2(size))
        for block in (1, 7, 64):
            assert blocks(size, block) == triton.cdiv(size, block)
