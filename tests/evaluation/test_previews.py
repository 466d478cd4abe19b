"""The previews of a benchmark's rows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sf.evaluation import previews
from sf.evaluation.benchmarks import benchmarks_of
from sf.evaluation.previews import MOST_PICTURES, SIDE, _preview, preview_table
from sf.evaluation.source import BenchmarkSource
from sf.sections import Vision

VISION = Vision(
    image_min_pixels=784,
    image_max_pixels=50176,
    video_min_pixels=784,
    video_max_pixels=50176,
    video_max_frames=4,
    video_fps=2.0,
)


def test_every_evaluated_row_has_its_question_and_small_pictures(
    home: Path, tmp_path: Path
) -> None:
    """Only evaluated rows are numbered: ChartQA's first one cannot be read."""
    source = BenchmarkSource("folder", str(home), 3, 0, {"chartqa": {0: "damaged"}})
    whole = BenchmarkSource("folder", str(home), 3, 0)
    suites = benchmarks_of(["chartqa", "videomme"])
    table = preview_table(suites, source, tmp_path, VISION, tmp_path)
    chart, video = (table[table["benchmark"] == name] for name in ("chartqa", "videomme"))
    assert [*chart["doc_id"]] == [0, 1]
    assert [*video["doc_id"]] == [0, 1, 2]
    complete = preview_table(benchmarks_of(["chartqa"]), whole, tmp_path, VISION, tmp_path)
    assert [*chart["question"]] == [*complete["question"]][1:]
    assert all("Answer the question" in text for text in chart["question"])
    for line in table.to_dict("records"):
        picture = PIL.Image.open(io.BytesIO(line["picture"]))
        frames = MOST_PICTURES if line["benchmark"] == "videomme" else 1
        assert (picture.format, picture.height <= 2 * SIDE) == ("JPEG", True)
        places = json.loads(line["places"])
        assert [place[:3] for place in places] == (
            [[0, frame, 4] for frame in range(4)] if frames > 1 else [[0, 0, 1]]
        )
        assert places[-1][3] + places[-1][4] == picture.width
        assert (frames - 1) * picture.height < picture.width <= frames * 2 * SIDE


def test_of_many_images_a_few_are_shown() -> None:
    images = [{"type": "image", "image": PIL.Image.new("RGB", (600, 300))}] * 6
    content = [*images, {"type": "text", "text": "Which?"}]
    preview = _preview(
        [{"role": "system", "content": []}, {"role": "user", "content": content}], VISION
    )
    assert preview["question"] == "Which?"
    picture = PIL.Image.open(io.BytesIO(preview["picture"]))
    assert picture.size == (MOST_PICTURES * SIDE, SIDE // 2)
    assert json.loads(preview["places"]) == [
        [number, 0, 1, number * SIDE, SIDE, SIDE // 2] for number in range(MOST_PICTURES)
    ]


def test_of_a_video_evenly_spaced_ones_of_the_models_frames_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small, but by the evaluation's rule; every picture shows the frame that it names."""
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 64, 3), np.uint8)
    asked = []

    def load(path: str, vision: Vision) -> tuple[np.ndarray, None]:
        asked.append(vision)
        return 20 * frames, None

    monkeypatch.setattr(previews, "load_video", load)
    content = [{"type": "video", "path": "nine frames"}, {"type": "text", "text": "Which?"}]
    preview = _preview([{"role": "user", "content": content}], VISION)
    (vision,) = asked
    assert vision == VISION.model_copy(update={"video_max_pixels": SIDE * SIDE})
    places = json.loads(preview["places"])
    assert places == [[0, frame, 9, 64 * at, 64, 32] for at, frame in enumerate((0, 3, 5, 8))]
    strip = np.asarray(PIL.Image.open(io.BytesIO(preview["picture"])))
    shown = [int(strip[16, left + 32, 0]) for _, _, _, left, _, _ in places]
    assert np.abs(np.array(shown) - [0, 60, 100, 160]).max() <= 3
