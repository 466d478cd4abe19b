"""Times of the kernels by tile size; "in use" is what they choose by themselves.

The projections and the cache of a new token are read from memory: each variant is recorded as one
graph over several copies, which together exceed the device's L2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch
from table import Row, exact
from torch.nn.functional import linear, silu

from gpu_sections.attention import caches, quantities
from gpu_sections.measure import by_kernel, rows_of, timed, timed_graphs
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
LINEAR = ((8, 512, 4), (4, 1024, 4), (2, 2048, 8), (4, 2048, 8), (2, 1024, 4), (8, 1024, 4))
CACHE = (
    (256, 64, 4, 3), (512, 64, 4, 2), (256, 32, 4, 4), (512, 32, 4, 4),
    (512, 128, 8, 2), (256, 128, 4, 2), (1024, 64, 4, 3), (128, 64, 4, 2),
)  # fmt: skip


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """The longest prompt: selection takes the largest share where attention is short."""
    length = scale.long[0]
    both = {f"tiles {length}": lambda: tune(scale, length)}
    # Triton's interpreter has no kernels to profile.
    return both if scale.rehearsal else {**both, "tiles by pass": lambda: passes(scale, length)}


def by_tile(
    scale: Scale, in_use: Any, others: Iterable[Any], made: Callable[[Any], Any]
) -> dict[str, Any]:
    """What `made` makes of the tile in use and, unless it is a rehearsal, of the others."""
    tiles = dict.fromkeys([in_use] if scale.rehearsal else [in_use, *others])
    return {
        " ".join(f"{name} {value}" for name, value in asdict(tile).items())
        + (" (in use)" if tile == in_use else ""): made(tile)
        for tile in tiles
    }


def variants_of(scale: Scale, length: int) -> dict[str, Callable[[], Any]]:
    """The probe scores of one layer by each choice of tiles."""
    query, key, _ = quantities(scale, 1, length)
    valid = torch.ones(1, length, dtype=torch.bool, device=scale.at)
    parts = (query, key, *Probes().columns(valid), valid, scale.head_dim**-0.5)
    in_use = tiles_for(scale.head_dim, scale.dtype, shared_memory(scale.at))
    others = (Tiles(*sizes) for sizes in product((64, 128), (64, 128), (4, 8), (2, 3)))
    return by_tile(scale, in_use, others, lambda tiles: partial(probe_mass, *parts, tiles))


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


def projections(scale: Scale, rows: int) -> list[Row]:
    """Milliseconds of a layer's products, beside PyTorch's."""
    shape = SHAPES[scale.shape]
    kept = scale.groups * scale.head_dim
    attention = scale.heads * scale.head_dim
    table = []
    for name, inputs, sizes, normed in (
        ("query, key, value", shape.hidden, (attention, kept, kept), True),
        ("gate and up", shape.hidden, (shape.intermediate,) * 2, True),
        ("down", shape.intermediate, (shape.hidden,), False),
        ("output", attention, (shape.hidden,), False),
    ):
        gated = name == "gate and up"
        copies = 1 if scale.rehearsal else 1 + int(READ_BYTES / (2 * inputs * sum(sizes)))
        row = torch.randn(rows, inputs, dtype=scale.dtype, device=scale.at)
        gain = torch.ones(inputs, dtype=scale.dtype, device=scale.at)
        weights = [
            [torch.randn(size, inputs, dtype=scale.dtype, device=scale.at) for size in sizes]
            for _ in range(copies)
        ]
        given = {"norm": (gain, 1e-6) if normed else None, "gated": gated}

        def ours(tile: LinearTile | None) -> list[Callable[[], Any]]:
            return [partial(project, row, held, **given, tile=tile) for held in weights]  # noqa: B023

        variants = {"ours": ours(None)}
        if rows == 1:  # several rows have no tiles
            in_use = linear_tile(inputs, normed, gated)
            variants = by_tile(scale, in_use, (LinearTile(*tile) for tile in LINEAR), ours)
        plain = [partial(library, row, held, gated) for held in weights]
        times = timed_graphs({**variants, "PyTorch, products only": plain}, scale)
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
    pairs = caches(scale, count)
    mask = (torch.arange(count, device=scale.at) >= 3)[None]
    in_use = decode_tile(scale.head_dim, scale.dtype, shared_memory(scale.at), count)

    def ours(tile: DecodeTile) -> list[Callable[[], Any]]:
        given = mask, scale.head_dim**-0.5, tile
        return [partial(decode_attention, query, *pair, *given) for pair in pairs]

    variants = by_tile(scale, in_use, (DecodeTile(*tile) for tile in CACHE), ours)
    return rows_of(timed_graphs(variants, scale), f"cache of {count},")
