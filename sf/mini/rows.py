"""A folder in Video-R1-260k's layout: one JSON file of rows, and their media."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sf.atomic_files import write_text
from sf.mini.drawing import render, write_video
from sf.mini.question_templates import RowQuestion, sample_questions, sample_subject
from sf.mini.world import CELL, Clip, Scene

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = ["ANNOTATIONS", "QUESTIONS_PER_MEDIA", "WorldSize", "write_dataset"]

ANNOTATIONS = "Video-R1-260k.json"
QUESTIONS_PER_MEDIA = 5
_SOURCE = {"image": "mini-scenes", "video": "mini-clips"}


@dataclass(frozen=True)
class WorldSize:
    """The size of pictures and clips: cells per side and frames."""

    side: int = 6
    frames: int = 4
    fps: int = 1

    @classmethod
    def within(cls, vision: Vision) -> WorldSize:
        """The default size, or a smaller one that the vision bounds do not shrink.

        A resized picture would no longer have one cell per visual token.
        """
        area = min(vision.image_max_pixels, vision.video_max_pixels) // CELL**2
        side = max(2, min(cls.side, int(area**0.5)))
        frames = max(2, min(cls.frames, vision.video_max_frames))
        return cls(side, frames, max(1, round(min(vision.video_fps, 4.0))))


def _record(number: int, row_question: RowQuestion, data_type: str, path: str) -> dict[str, Any]:
    return {
        "problem_id": number,
        "problem": row_question.problem,
        "data_type": data_type,
        "problem_type": row_question.problem_type,
        "options": list(row_question.options),
        "process": "",
        "solution": row_question.solution,
        "path": f"./{path}",
        "data_source": _SOURCE[data_type],
    }


def _subjects(rng: np.random.Generator, size: WorldSize) -> Iterator[tuple[str, Scene | Clip]]:
    """Endlessly alternating scenes and clips."""
    while True:
        for data_type in ("image", "video"):
            subject = sample_subject(
                rng, data_type, rows=size.side, cols=size.side, frames=size.frames
            )
            yield data_type, subject


def write_dataset(folder: Path, rows: int, seed: int, vision: Vision) -> Path:
    """Write `rows` questions about scenes (PNG) and clips (MP4), several per medium.

    The same arguments write the same rows and pictures. With about 40 rows or more, all five
    problem types and both media types occur.

    Args:
        folder: created; `Video-R1-260k.json` and `mini-scenes/`, `mini-clips/` are written in it.
        rows: number of rows.
        seed: of rows and media.
        vision: bounds that pictures and clips respect, so that nothing is resized.

    Returns:
        The JSON file.
    """
    rng = np.random.default_rng([seed, 260])
    size = WorldSize.within(vision)
    for name in _SOURCE.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for number, (data_type, subject) in enumerate(_subjects(rng, size)):
        if len(records) >= rows:
            break
        suffix = "png" if isinstance(subject, Scene) else "mp4"
        path = f"{_SOURCE[data_type]}/{number:06d}.{suffix}"
        if isinstance(subject, Scene):
            render(subject).save(folder / path, compress_level=1)
        else:
            write_video(subject, folder / path, size.fps)
        for row_question in sample_questions(subject, rng, QUESTIONS_PER_MEDIA):
            records.append(_record(len(records), row_question, data_type, path))
    target = folder / ANNOTATIONS
    write_text(target, json.dumps(records[:rows], indent=1))
    return target
