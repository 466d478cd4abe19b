"""Assignment of rows to splits, by hash, so that adding rows never moves another row.

All rows about the same media form a group, so near-duplicate questions about them stay on one side.
Media are the same if their bytes are equal or, if media were not opened, their paths.
A group's hash decides its side: held-out below `heldout_share`, calibration in the next
`calibration_share`, else training. The held-out and calibration manifests then take a limited
number of rows of their side, in proportion over strata; the remaining rows of these sides are in
reserve: they are in no manifest and never trained on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sf.data.manifest import Row
from sf.errors import ConfigError

__all__ = ["SplitSettings", "sample", "side_of", "split_rows", "stratum"]


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """The parameters of the split.

    Attributes:
        seed: of the hash.
        calibration_share, heldout_share: shares of the media, in [0, 1).
        calibration_rows, heldout_rows: most rows of the side that the manifest takes.
    """

    seed: int
    calibration_share: float
    heldout_share: float
    calibration_rows: int
    heldout_rows: int

    def __post_init__(self) -> None:
        total = self.calibration_share + self.heldout_share
        if not 0.0 < total < 1.0:
            rule = "calibration_share and heldout_share together must lie in (0, 1)"
            raise ConfigError("split", total, rule, "leave most of the media for training")


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends only on the parts."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big") / 2**56


def side_of(group: str, settings: SplitSettings) -> str:
    """The side of all rows of a group: "train", "calibration" or "heldout"."""
    place = unit_hash("side", settings.seed, group)
    if place < settings.heldout_share:
        return "heldout"
    return "calibration" if place < settings.heldout_share + settings.calibration_share else "train"


def stratum(row: Row) -> tuple[str, str]:
    """The stratum of a row: media type and problem type; sampling keeps their proportions."""
    return row.data_type, row.problem_type


def _shares(sizes: dict[tuple[str, str], int], wanted: int) -> dict[tuple[str, str], int]:
    """Split `wanted` over strata in proportion (largest remainders), limited by their sizes."""
    total = sum(sizes.values())
    exact = {key: wanted * size / total for key, size in sizes.items()}
    counts = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: (counts[key] - exact[key], key))
    for key in by_remainder[: wanted - sum(counts.values())]:
        counts[key] += 1
    return counts


def sample(
    rows: Sequence[Row], wanted: int, order: Callable[[Row], float]
) -> tuple[list[Row], list[Row]]:
    """Take rows in proportion over strata, smallest `order` first.

    Returns:
        The taken and the remaining rows, both in their given order.
    """
    if wanted >= len(rows):
        return list(rows), []
    strata: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        strata[stratum(row)].append(row)
    counts = _shares({key: len(members) for key, members in strata.items()}, wanted)
    taken = {
        row.id
        for key, members in strata.items()
        for row in sorted(members, key=lambda row: (order(row), row.id))[: counts[key]]
    }
    chosen = [row for row in rows if row.id in taken]
    return chosen, [row for row in rows if row.id not in taken]


def split_rows(
    rows: Iterable[Row], settings: SplitSettings, groups: Mapping[str, str] | None = None
) -> dict[str, list[Row]]:
    """All rows by split, each list ordered by the rows' hashes.

    Args:
        rows: with unique ids.
        settings: see `SplitSettings`.
        groups: group by row id (`sf.data.collect.Collected`), unaffected by packing media into
            archives; None for the rows' media paths.

    Returns:
        "train", "calibration", "heldout" and "reserve".
    """
    sides: dict[str, list[Row]] = {"train": [], "calibration": [], "heldout": []}
    places: dict[str, str] = {}
    keys: dict[str, float] = {}
    for row in rows:
        name = groups[row.id] if groups else row.media
        side = places.get(name)
        if side is None:
            side = places[name] = side_of(name, settings)
        keys[row.id] = unit_hash("row", settings.seed, row.id)
        sides[side].append(row)
    for members in sides.values():
        members.sort(key=lambda row: (keys[row.id], row.id))
    reserve: list[Row] = []
    for side, most in (
        ("calibration", settings.calibration_rows),
        ("heldout", settings.heldout_rows),
    ):
        sides[side], rest = sample(sides[side], most, lambda row: keys[row.id])
        reserve += rest
    return {**sides, "reserve": reserve}
