"""What a reader is shown of a benchmark's rows: the question and small pictures of its media."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import PIL.Image

from sf.data.images import load_rgb, side_by_side
from sf.data.video import load_video
from sf.evaluation.benchmarks import Benchmark
from sf.evaluation.question import turns_of
from sf.evaluation.readable import leave_out
from sf.evaluation.source import Source
from sf.evaluation.tasks import benchmark_home, build_task, documents
from sf.sections import Vision

__all__ = ["preview_table"]

SIDE = 128
"""Pixels of a picture's longer side."""
MOST_PICTURES = 4
"""Images of a question, or frames of its video, that are shown at most."""
QUALITY = 70  # of JPEG
FRAMES = Vision(
    image_min_pixels=784,
    image_max_pixels=SIDE * SIDE,
    video_min_pixels=784,
    video_max_pixels=SIDE * SIDE,
    video_max_frames=MOST_PICTURES,
    video_fps=1.0,
)


def preview_table(
    benchmarks: Sequence[Benchmark], source: Source, folder: Path, scratch: Path
) -> pd.DataFrame:
    """A line a row of the benchmarks that is evaluated.

    Args:
        benchmarks: which.
        source: their data.
        folder: result of the stage `benchmarks`.
        scratch: for Arrow files.

    Returns:
        Columns benchmark, task, doc_id (as in `samples.jsonl`), question, picture (JPEG; empty
        without media).
    """
    home = source.home_path(folder, scratch)
    lines = []
    with benchmark_home(home, scratch / "arrow"):
        for benchmark, task in ((one, task) for one in benchmarks for task in one.tasks):
            lmms_task = build_task(task, home)
            leave_out(lmms_task, task, source.unreadable.get(task.name, ()), source.limit)
            for number, (_, messages) in enumerate(documents(lmms_task)):
                named = {"benchmark": benchmark.name, "task": task.name, "doc_id": number}
                lines.append({**named, **_preview(turns_of(messages))})
    return pd.DataFrame(lines)


def _preview(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    parts = [part for turn in turns if turn["role"] == "user" for part in turn["content"]]
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    pictures = [picture for part in parts for picture in _pictures(part)][:MOST_PICTURES]
    return {"question": text.strip(), "picture": _jpeg(side_by_side(pictures)) if pictures else b""}


def _pictures(part: dict[str, Any]) -> Sequence[PIL.Image.Image]:
    """Small pictures of an image or of a video's frames."""
    if part["type"] == "image":
        picture = load_rgb(part)
        picture.thumbnail((SIDE, SIDE))
        return [picture]
    return _frames(part["path"]) if part["type"] == "video" else ()


@lru_cache(maxsize=4)  # neighbouring rows ask about one video
def _frames(path: str) -> tuple[PIL.Image.Image, ...]:
    return tuple(map(PIL.Image.fromarray, load_video(path, FRAMES)[0]))


def _jpeg(picture: PIL.Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()
