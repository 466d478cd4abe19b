"""Previews of a benchmark's rows: the question and thumbnails of its media."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import PIL.Image

from sf.data.images import load_rgb, side_by_side
from sf.data.video import load_video
from sf.evaluation.benchmarks import Benchmark
from sf.evaluation.question import turns_of
from sf.evaluation.readable import leave_out
from sf.evaluation.source import BenchmarkSource
from sf.evaluation.tasks import benchmark_home, build_task, documents
from sf.sections import Vision

__all__ = ["preview_table"]

SIDE = 128
"""Longer side of a picture in pixels."""
MOST_PICTURES = 4
"""Maximum number of displayed images of a question, or frames of its video."""
QUALITY = 70  # of JPEG
MIN_PIXELS = 784


class _Picture(NamedTuple):
    """A thumbnail and its origin.

    Attributes:
        image: the picture.
        medium: index of the image or video in the question.
        frame: index of the frame among those given to a model; 0 for an image.
        frames: number of frames given to a model; 1 for an image.
    """

    image: PIL.Image.Image
    medium: int
    frame: int = 0
    frames: int = 1


def preview_table(
    benchmarks: Sequence[Benchmark],
    source: BenchmarkSource,
    folder: Path,
    vision: Vision,
    scratch: Path,
) -> pd.DataFrame:
    """One line per evaluated row of the benchmarks.

    Args:
        benchmarks: the benchmarks.
        source: their data.
        folder: result of the stage `benchmarks`.
        vision: of the evaluation, whose rule determines the sampled frames.
        scratch: for Arrow files.

    Returns:
        Columns benchmark, task, doc_id (as in `samples.jsonl`), question, picture (JPEG; empty
        without media), places (JSON: of each image or frame in the picture, from the left
        [medium, frame, frames, left, width, height], the last three in pixels).
    """
    home = source.home_path(folder, scratch)
    lines = []
    with benchmark_home(home, scratch / "arrow"):
        for benchmark, task in ((one, task) for one in benchmarks for task in one.tasks):
            lmms_task = build_task(task, home)
            leave_out(lmms_task, task, source.unreadable.get(task.name, ()), source.limit)
            for number, (_, messages) in enumerate(documents(lmms_task)):
                named = {"benchmark": benchmark.name, "task": task.name, "doc_id": number}
                lines.append({**named, **_preview(turns_of(messages), vision)})
    return pd.DataFrame(lines)


def _preview(turns: Sequence[dict[str, Any]], vision: Vision) -> dict[str, Any]:
    parts = [part for turn in turns if turn["role"] == "user" for part in turn["content"]]
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    media = [part for part in parts if part["type"] != "text"]
    pictures = [
        picture for number, part in enumerate(media) for picture in _pictures(part, number, vision)
    ][:MOST_PICTURES]
    images = [picture.image for picture in pictures]
    lefts = accumulate((image.width for image in images), initial=0)
    places = [
        [medium, frame, frames, left, *image.size]
        for (image, medium, frame, frames), left in zip(pictures, lefts, strict=False)
    ]
    return {
        "question": text.strip(),
        "picture": _jpeg(side_by_side(images)) if images else b"",
        "places": json.dumps(places),
    }


def _pictures(part: dict[str, Any], medium: int, vision: Vision) -> Sequence[_Picture]:
    """Thumbnails of an image or of a video's frames."""
    if part["type"] == "image":
        image = load_rgb(part)
        image.thumbnail((SIDE, SIDE))
        return [_Picture(image, medium)]
    small = {"video_min_pixels": MIN_PIXELS, "video_max_pixels": SIDE * SIDE}
    images, frames = _frames(part["path"], vision.model_copy(update=small))
    return [_Picture(image, medium, frame, frames) for frame, image in images.items()]


@lru_cache(maxsize=4)  # neighbouring rows ask about one video
def _frames(path: str, vision: Vision) -> tuple[dict[int, PIL.Image.Image], int]:
    """Evenly spaced indices among the frames given to a model, and the number of those frames."""
    frames = load_video(path, vision)[0]
    most = min(MOST_PICTURES, len(frames))
    shown = [round(at) for at in np.linspace(0, len(frames) - 1, most)]
    return {at: PIL.Image.fromarray(frames[at]) for at in shown}, len(frames)


def _jpeg(picture: PIL.Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()
