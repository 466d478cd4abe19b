"""Tile sizes of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton

__all__ = ["Tiles", "padded", "shared_memory", "tiles_for"]

_RESERVED_BYTES = 4096


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of the probe kernels; `make gpu` compares some.

    Attributes:
        rows, keys: of one tile of scores; powers of two, at least 16.
        warps: per program. stages: loads in flight while a tile is computed.
    """

    rows: int = 128
    keys: int = 128
    warps: int = 8
    stages: int = 3


def tiles_for(head_dim: int, dtype: torch.dtype, available: int) -> Tiles:
    """The largest tiles that fit `available` bytes of shared memory.

    It stores a fixed operand and `stages` streamed ones, each rows (or keys) x head_dim. A program
    has 227 KiB on an H200, 163 KiB on an A100, and 99 KiB or 64 KiB on smaller GPUs.
    """
    row_bytes = padded(head_dim) * dtype.itemsize
    for tiles in (
        Tiles(128, 128, 8, 3),
        Tiles(128, 128, 8, 2),
        Tiles(64, 64, 4, 2),
        Tiles(32, 32, 4, 2),
    ):
        # float32 products do not use tensor cores; smaller tiles keep them in registers.
        if dtype == torch.float32 and tiles.keys > 32:
            continue
        if (tiles.rows + tiles.stages * tiles.keys) * row_bytes <= available - _RESERVED_BYTES:
            return tiles
    return Tiles(16, 16, 2, 1)


def padded(size: int) -> int:
    """The smallest tile extent of at least `size`: a power of two, at least 16."""
    power: Any = triton.next_power_of_2(size)
    return max(16, int(power))


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory available to one program; 64 KiB for Triton's interpreter."""
    if device.type != "cuda":
        return 1 << 16
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache
def _of_device(index: int) -> int:
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])
