"""The generated data set has Video-R1's layout and is accepted as such."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sf.data.answers import parse_solution
from sf.data.manifest import PROBLEM_TYPES
from sf.mini.rows import ANNOTATIONS, WorldSize, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    from sf.config import Vision

    folder = tmp_path_factory.mktemp("rows")
    vision = Vision(
        image_min_pixels=784,
        image_max_pixels=784 * 36,
        video_min_pixels=784,
        video_max_pixels=784 * 36,
        video_max_frames=4,
        video_fps=1.0,
    )
    write_dataset(folder, 120, 0, vision)
    return folder


def test_all_problem_types_and_media_occur(dataset):
    rows = json.loads((dataset / ANNOTATIONS).read_text())
    assert len(rows) == 120
    kinds = Counter((row["data_type"], row["problem_type"]) for row in rows)
    assert set(kinds) == {(m, t) for m in ("image", "video") for t in PROBLEM_TYPES}
    assert len({row["problem_id"] for row in rows}) == 120


def test_solutions_follow_their_problem_types_rule(dataset):
    for row in json.loads((dataset / ANNOTATIONS).read_text()):
        parse_solution(row["problem_type"], row["solution"], row["options"])
        assert bool(row["options"]) == (row["problem_type"] == "multiple choice")
        assert (dataset / row["path"]).is_file()


def test_the_same_seed_writes_the_same_files(dataset, tmp_path, vision):
    write_dataset(tmp_path, 120, 0, vision)
    for file in (ANNOTATIONS, "mini-scenes/000000.png"):
        assert (tmp_path / file).read_bytes() == (dataset / file).read_bytes()


def test_small_bounds_give_a_small_world(vision):
    small = vision.model_copy(update={"image_max_pixels": 784 * 10, "video_max_frames": 2})
    assert WorldSize.within(small) == WorldSize(side=3, frames=2)
    assert WorldSize.within(vision) == WorldSize(side=6, frames=4)
