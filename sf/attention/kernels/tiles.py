"""Tile sizes of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

__all__ = ["Tiles", "blocks", "padded", "power_of_two", "shared_memory", "tiles_for"]

_RESERVED_BYTES = 4096


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of the probe kernels; `make gpu` compares sixteen.

    Attributes:
        rows, keys: of one tile of scores; powers of two, at least 16.
        warps: per program. stages: loads in flight while a tile is computed.
    """

    rows: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2


@lru_cache
def tiles_for(head_dim: int, dtype: torch.dtype, available: int) -> Tiles:
    """The fastest measured tiles that fit `available` bytes of shared memory.

    It stores a fixed operand and `stages` streamed ones, each rows (or keys) x head_dim. A program
    has 227 KiB on an H100 or H200, 163 KiB on an A100, and 99 KiB or 64 KiB on smaller GPUs.

    Measured on an H100 (65,536 tokens, 28 heads, 4 KV heads, head size 128, bfloat16): 64 x 64
    takes 0.59 ms, 128 x 128 with 8 warps 0.72 to 0.75 ms although it reads the keys half as often.
    Other devices are not measured.
    """
    row_bytes = padded(head_dim) * dtype.itemsize
    for tiles in (Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 2)):
        # float32 products do not use tensor cores; smaller tiles keep them in registers.
        if dtype == torch.float32 and tiles.keys > 32:
            continue
        if (tiles.rows + tiles.stages * tiles.keys) * row_bytes <= available - _RESERVED_BYTES:
            return tiles
    return Tiles(16, 16, 2, 1)


def padded(size: int) -> int:
    """The smallest tile extent of at least `size`: a power of two, at least 16."""
    return max(16, power_of_two(size))


def power_of_two(size: int) -> int:
    """The smallest power of two of at least `size`, which is at least 1.

    Triton's own function is slower on the host, while the device waits for the launch.
    """
    return 1 << (size - 1).bit_length()


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory available to one program; 64 KiB for Triton's interpreter."""
    if device.type != "cuda":
        return 1 << 16
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache
def _of_device(index: int) -> int:
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])
