"""Times of the kernels by tile size; "in use" is what they choose by themselves.

The projections and the cache of a new token are read from memory: each variant is recorded as one
graph over several copies, which together exceed the device's L2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from table import Row, exact
from torch.nn.functional import linear, silu

from gpu_sections.attention import quantities
from gpu_sections.measure import by_kernel, recorded, rows_of, timed
from gpu_sections.scale import RATIO, Scale
from sf.attention.kernels.decode import DecodeTile, decode_attention, decode_tile
from sf.attention.kernels.linear import LinearTile, linear_tile, project
from sf.attention.kernels.probe_scores import probe_mass
from sf.attention.kernels.tiles import Tiles, shared_memory, tiles_for
from sf.profiling.models import SHAPES
from sf.selection import Probes

__all__ = ["decode_steps", "steps"]

# The first pass streams keys past fixed queries, the second one queries past fixed keys, so that
# they may prefer different tiles.
PASSES = {"_row_statistics": "first pass", "_key_mass": "second pass"}
READ_BYTES = 200e6  # of all copies


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """The longest prompt: selection takes the largest share where attention is short."""
    length = scale.long[0]
    both = {f"tiles {length}": lambda: tune(scale, length)}
    # Triton's interpreter has no kernels to profile.
    return both if scale.rehearsal else {**both, "tiles by pass": lambda: passes(scale, length)}


def choices(scale: Scale, in_use: Tiles) -> list[Tiles]:
    """The tiles in use, then others in ascending order."""
    if scale.rehearsal:
        return [in_use, Tiles(32, 32, 2, 1)]
    others = [
        Tiles(rows, keys, warps, stages)
        for rows in (64, 128)
        for keys in (64, 128)
        for warps in (4, 8)
        for stages in (2, 3)
    ]
    return [in_use, *(tiles for tiles in others if tiles != in_use)]


def variants_of(scale: Scale, length: int) -> dict[str, Callable[[], Any]]:
    """The probe scores of one layer by each choice of tiles."""
    query, key, _ = quantities(scale, 1, length)
    valid = torch.ones(1, length, dtype=torch.bool, device=scale.at)
    column, present = Probes().columns(valid)
    in_use = tiles_for(scale.head_dim, scale.dtype, shared_memory(scale.at))
    variants = {}
    for tiles in choices(scale, in_use):
        note = " (in use)" if tiles == in_use else ""
        name = f"rows {tiles.rows} keys {tiles.keys} warps {tiles.warps} stages {tiles.stages}"
        variants[name + note] = partial(
            probe_mass, query, key, column, present, valid, scale.head_dim**-0.5, tiles
        )
    return variants


def tune(scale: Scale, length: int) -> list[Row]:
    """Milliseconds of the probe scores of one layer."""
    return rows_of(timed(variants_of(scale, length), scale), f"probe scores {length}")


def passes(scale: Scale, length: int) -> list[Row]:
    """Milliseconds of each pass on the device, without launches."""
    rows = []
    for name, call in variants_of(scale, length).items():
        spent = {kernel: taken for kernel, taken, _ in by_kernel(call, scale.at)}
        rows += [
            exact(f"probe scores {length} {name}, {title}", spent[kernel], "ms")
            for kernel, title in PASSES.items()
        ]
    return rows


def decode_steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """What a new token reads: the weights for one row and for a batch, and the cache."""
    return {
        **{f"projections, {rows} rows": partial(projections, scale, rows) for rows in (1, 8)},
        "cache": lambda: cache(scale),
    }


def projection_choices(scale: Scale, rows: int, in_use: LinearTile) -> list[LinearTile]:
    """The tile in use, then others; several rows have none."""
    if scale.rehearsal or rows > 1:
        return [in_use]
    tiles = ((8, 512, 4), (4, 1024, 4), (2, 2048, 8), (4, 2048, 8), (2, 1024, 4), (8, 1024, 4))
    others = [LinearTile(*tile) for tile in tiles]
    return [in_use, *(tile for tile in others if tile != in_use)]


def projections(scale: Scale, rows: int) -> list[Row]:
    """Milliseconds of a layer's products, beside PyTorch's."""
    shape = SHAPES[scale.shape]
    kept = scale.groups * scale.head_dim
    attention = scale.heads * scale.head_dim
    table = []
    for name, inputs, sizes in (
        ("query, key, value", shape.hidden, (attention, kept, kept)),
        ("gate and up", shape.hidden, (shape.intermediate,) * 2),
        ("down", shape.intermediate, (shape.hidden,)),
        ("output", attention, (shape.hidden,)),
    ):
        gated = name == "gate and up"
        copies = 1 if scale.rehearsal else 1 + int(READ_BYTES / (2 * inputs * sum(sizes)))
        row = torch.randn(rows, inputs, dtype=scale.dtype, device=scale.at)
        gain = torch.ones(inputs, dtype=scale.dtype, device=scale.at)
        weights = [
            [torch.randn(size, inputs, dtype=scale.dtype, device=scale.at) for size in sizes]
            for _ in range(copies)
        ]
        norm = None if name in ("down", "output") else (gain, 1e-6)
        in_use = linear_tile(inputs, norm is not None, gated)
        variants: dict[str, Callable[[], Any]] = {}
        for tile in projection_choices(scale, rows, in_use):
            note = " (in use)" if tile == in_use else ""
            label = f"{tile.outputs} x {tile.inputs}, warps {tile.warps}" if rows == 1 else "ours"
            calls = [
                partial(project, row, held, norm=norm, gated=gated, tile=tile) for held in weights
            ]
            variants[label + note] = recorded(calls, scale.at)
        plain = [partial(library, row, held, gated) for held in weights]
        variants["PyTorch, products only"] = recorded(plain, scale.at)
        times = {
            label: [taken / copies for taken in each]
            for label, each in timed(variants, scale).items()
        }
        table += rows_of(times, f"{name}, {rows} rows,")
    return table


def library(row: Any, weights: list[Any], gated: bool) -> Any:
    """The products by PyTorch, without the norm."""
    made = [linear(row, weight) for weight in weights]
    return silu(made[0]) * made[1] if gated else made


def cache(scale: Scale) -> list[Row]:
    """Milliseconds of attention over a masked pruned cache."""
    count = round(RATIO * scale.decode)
    query = quantities(scale, 1, 1)[0][:, :, 0]
    pairs = [
        [part.contiguous() for part in quantities(scale, 1, count)[1:]] for _ in range(scale.caches)
    ]
    mask = (torch.arange(count, device=scale.at) >= 3)[None]
    in_use = decode_tile(scale.head_dim, scale.dtype, shared_memory(scale.at), count)
    others = (
        (256, 64, 4, 3), (512, 64, 4, 2), (256, 32, 4, 4), (512, 32, 4, 4),
        (512, 128, 8, 2), (256, 128, 4, 2), (1024, 64, 4, 3), (128, 64, 4, 2),
    )  # fmt: skip
    tiles = [] if scale.rehearsal else [DecodeTile(*tile) for tile in others]
    variants: dict[str, Callable[[], Any]] = {}
    for tile in [in_use, *(tile for tile in tiles if tile != in_use)]:
        note = " (in use)" if tile == in_use else ""
        label = (
            f"stretch {tile.stretch}, entries {tile.entries}, warps {tile.warps}, "
            f"stages {tile.stages}{note}"
        )
        calls = [
            partial(decode_attention, query, *pair, mask, scale.head_dim**-0.5, tile)
            for pair in pairs
        ]
        variants[label] = recorded(calls, scale.at)
    times = {
        label: [taken / scale.caches for taken in each]
        for label, each in timed(variants, scale).items()
    }
    return rows_of(times, f"cache of {count},")
