"""Which row goes where: hash-based, so that adding rows moves no other row to another side.

All rows about the same media form a group, so near-duplicate questions over them stay on one side:
media with the same bytes where media were opened, whatever their names, else with the same path.
A group's hash decides its side: held-out below `heldout_share`, calibration in the next
`calibration_share`, else training. The held-out and calibration manifests then take at most so many
rows of their side, in proportion over strata; what is left over on these sides is in reserve: it is
in no manifest and never trained on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sf.data.manifest import Row
from sf.errors import ConfigError

__all__ = ["Plan", "sample", "side_of", "split_rows", "stratum"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How rows are split.

    Attributes:
        seed: another seed, another split.
        calibration_share, heldout_share: of the media, in [0, 1).
        calibration_rows, heldout_rows: manifests take at most so many of their side's rows.
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
    """A number in [0, 1) that depends on nothing but the parts."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big") / 2**56


def side_of(group: str, plan: Plan) -> str:
    """The side that all rows of a group are on: "train", "calibration" or "heldout"."""
    place = unit_hash("side", plan.seed, group)
    if place < plan.heldout_share:
        return "heldout"
    return "calibration" if place < plan.heldout_share + plan.calibration_share else "train"


def stratum(row: Row) -> tuple[str, str]:
    """What sampling keeps the proportions of: media type and problem type."""
    return row.data_type, row.problem_type


def _shares(sizes: dict[tuple[str, str], int], wanted: int) -> dict[tuple[str, str], int]:
    """Split `wanted` over strata in proportion (largest remainders), none above its size."""
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
    """Take rows in proportion over strata, those with the smallest `order` first.

    Returns:
        Taken rows and the others, both in their given order.
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
    rows: Iterable[Row], plan: Plan, groups: Mapping[str, str] | None = None
) -> dict[str, list[Row]]:
    """All rows by split; each list is in the order of the rows' own hashes.

    Args:
        rows: with unique ids.
        plan: see `Plan`.
        groups: a row's group by its id (`sf.data.collect.Collected`), which packing media into
            archives does not change; None takes the rows' media paths.

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
            side = places[name] = side_of(name, plan)
        keys[row.id] = unit_hash("row", plan.seed, row.id)
        sides[side].append(row)
    for members in sides.values():
        members.sort(key=lambda row: (keys[row.id], row.id))
    reserve: list[Row] = []
    for side, most in (
        ("calibration", plan.calibration_rows),
        ("heldout", plan.heldout_rows),
    ):
        sides[side], rest = sample(sides[side], most, lambda row: keys[row.id])
        reserve += rest
    return {**sides, "reserve": reserve}
