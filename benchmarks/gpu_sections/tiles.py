"""Times of the probe kernels by tile size; "in use" is the result of `tiles_for`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from table import Row

from gpu_sections.attention import quantities
from gpu_sections.measure import rows_of, timed
from gpu_sections.scale import Scale
from sf.attention.kernels.probe_scores import probe_mass
from sf.attention.kernels.tiles import Tiles, shared_memory, tiles_for
from sf.selection import Probes

__all__ = ["steps"]


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """The longest prompt: selection takes the largest share where attention is short."""
    return {f"tiles {length}": partial(tune, scale, length) for length in scale.long[:1]}


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


def tune(scale: Scale, length: int) -> list[Row]:
    """Milliseconds of the probe scores of one layer."""
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
    return rows_of(timed(variants, scale), f"probe scores {length}")
