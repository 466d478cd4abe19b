"""The split is stable and stratified, and rows about one media file stay together."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sf.data.manifest import DATA_TYPES, PROBLEM_TYPES, Row
from sf.data.split import SplitSettings, sample, side_of, split_rows, stratum, unit_hash


def row(number: int, media: str | None = None) -> Row:
    problem_type = PROBLEM_TYPES[number % 5]
    data_type = DATA_TYPES[number % 2]
    name = media or f"m{number}.png"
    return Row(str(number), "q", problem_type, data_type, (), "", "", name, "s")


def plan(**changes) -> SplitSettings:
    values = {
        "seed": 0,
        "calibration_share": 0.15,
        "heldout_share": 0.25,
        "calibration_rows": 40,
        "heldout_rows": 60,
    }
    return SplitSettings(**{**values, **changes})


def sides(splits: dict[str, list[Row]]) -> dict[str, str]:
    return {row.id: split for split, rows in splits.items() for row in rows}


numbers = st.sets(st.integers(0, 5000), max_size=120)


@given(old=numbers, new=numbers, seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_added_rows_move_no_row_to_another_side(old, new, seed):
    """Rows can only enter or leave a full held-out manifest."""
    chosen = plan(seed=seed, heldout_rows=10, calibration_rows=10)
    before = sides(split_rows([row(n) for n in sorted(old)], chosen))
    after = sides(split_rows([row(n) for n in sorted(old | new)], chosen))
    for identity, split in before.items():
        if split == "train":
            assert after[identity] == "train"
        else:
            assert after[identity] != "train"
            side = side_of(f"m{identity}.png", chosen)
            assert {split, after[identity]} <= {side, "reserve"}


@given(old=numbers, new=numbers)
@settings(max_examples=30, deadline=None)
def test_with_room_left_nothing_moves_at_all(old, new):
    chosen = plan(heldout_rows=10_000, calibration_rows=10_000)
    before = sides(split_rows([row(n) for n in sorted(old)], chosen))
    after = sides(split_rows([row(n) for n in sorted(old | new)], chosen))
    assert "reserve" not in before.values()
    assert all(after[identity] == split for identity, split in before.items())


@given(order=st.permutations(list(range(60))))
@settings(max_examples=20, deadline=None)
def test_order_of_the_rows_does_not_matter(order):
    assert split_rows([row(n) for n in order], plan()) == split_rows(
        [row(n) for n in range(60)], plan()
    )


@given(groups=st.lists(st.integers(1, 6), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_rows_about_the_same_media_stay_on_one_side(groups):
    rows = [
        row(100 * group + member, media=f"v{group}.mp4")
        for group, size in enumerate(groups)
        for member in range(size)
    ]
    chosen = plan(heldout_rows=5, calibration_rows=5)
    for split, members in split_rows(rows, chosen).items():
        expected = {side_of(member.media, chosen) for member in members}
        if split == "reserve":
            assert "train" not in expected
        else:
            assert expected <= {split}


def test_every_row_is_somewhere_once():
    rows = [row(n) for n in range(500)]
    identities = [member.id for members in split_rows(rows, plan()).values() for member in members]
    assert sorted(identities) == sorted(member.id for member in rows)


def test_shares_and_limits_hold():
    rows = [row(n) for n in range(4000)]
    free = split_rows(rows, plan(calibration_rows=4000, heldout_rows=4000))
    assert len(free["heldout"]) / 4000 == pytest.approx(0.25, abs=0.03)
    assert len(free["calibration"]) / 4000 == pytest.approx(0.15, abs=0.03)
    tight = split_rows(rows, plan())
    assert (len(tight["calibration"]), len(tight["heldout"])) == (40, 60)
    assert tight["train"] == free["train"]


def test_limited_manifests_keep_the_proportions():
    rows = [row(n) for n in range(4000)]
    counts = Counter(map(stratum, split_rows(rows, plan())["heldout"]))
    assert set(counts) == set(map(stratum, rows))
    assert max(counts.values()) - min(counts.values()) <= 2  # ten equal strata share 60 rows


def test_a_sample_has_the_exact_counts_of_largest_remainders():
    """Of 50, 30 and 20 rows seven are 3.5, 2.1 and 1.4: the first gets the seventh."""
    kinds = ["OCR"] * 50 + ["numerical"] * 30 + ["regression"] * 20
    rows = [
        dataclasses.replace(row(n), problem_type=kind, data_type="image")
        for n, kind in enumerate(kinds)
    ]
    for wanted, expected in ((7, (4, 2, 1)), (8, (4, 2, 2)), (9, (4, 3, 2)), (1, (1, 0, 0))):
        taken, others = sample(rows, wanted, lambda one: -int(one.id))
        counts = Counter(one.problem_type for one in taken)
        assert (counts["OCR"], counts["numerical"], counts["regression"]) == expected
        assert len(taken) + len(others) == 100
        assert "49" in {one.id for one in taken}  # the smallest in the order


def test_another_seed_is_another_split():
    rows = [row(n) for n in range(300)]
    one, other = (sides(split_rows(rows, plan(seed=seed))) for seed in (0, 1))
    assert sum(one[key] != other[key] for key in one) > 50


@given(wanted=st.integers(0, 80), size=st.integers(0, 60))
def test_a_sample_has_the_size_asked_for(wanted, size):
    rows = [row(n) for n in range(size)]
    taken, rest = sample(rows, wanted, lambda member: unit_hash(member.id))
    assert len(taken) == min(wanted, size)
    assert {r.id for r in taken} | {r.id for r in rest} == {r.id for r in rows}
    assert not {r.id for r in taken} & {r.id for r in rest}


def test_the_hash_is_fixed():
    """Manifests written today and next year must agree."""
    assert unit_hash("side", 0, "a.png") == 0.7428830700819945


def test_groups_keep_rows_together_whatever_their_media_are_called():
    rows = [row(n) for n in range(200)]
    groups = {member.id: f"digest {int(member.id) % 7}" for member in rows}
    splits = sides(split_rows(rows, plan(calibration_rows=999, heldout_rows=999), groups))
    assert len(set(splits.values())) > 1
    for identity, split in splits.items():
        assert split == side_of(groups[identity], plan())
