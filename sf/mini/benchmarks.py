"""Small local stand-ins for the thirteen benchmarks, and training examples in their formats.

`write_benchmarks` writes a benchmark home (see `sf.evaluation.tasks`): parquet files with each
benchmark's own columns and dataset configurations, videos and subtitles where lmms-eval's task code
looks for them. lmms-eval's prompts, parsers and aggregation run on them unchanged. The figures mean
nothing beyond this small world.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np

from sf.evaluation.benchmarks import BENCHMARKS, Benchmark, Task
from sf.extras import extra
from sf.mini.documents import Document, Fresh, Maker
from sf.mini.drawing import render, write_video
from sf.mini.image_benchmarks import IMAGE_MAKERS, MME_CATEGORIES
from sf.mini.rows import WorldSize
from sf.mini.video_benchmarks import MLVU_TYPES, VIDEO_MAKERS

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAKERS", "Example", "training_examples", "write_benchmarks"]

MAKERS = IMAGE_MAKERS | VIDEO_MAKERS
_TWINS = {"videomme_w_subtitle": "videomme"}  # they read the same rows
_LEAST = {"mme": 4 * len(MME_CATEGORIES), "mlvu_dev": len(MLVU_TYPES)}
"""Rows below which lmms-eval's aggregation lacks a category and the full score is out of reach.
MME has two pictures of two questions a category: with one there is no interval."""


@dataclass(frozen=True)
class Example:
    """One training example in a benchmark's answer format.

    Attributes:
        task: lmms-eval's task name.
        media: a picture, or the path of a video.
        data_type: "image" or "video".
        prompt: lmms-eval's text for the model.
        target: the shortest reply that scores.
    """

    task: str
    media: Image | Path
    data_type: Literal["image", "video"]
    prompt: str
    target: str


def _make(part: Task, samples: int, seed: int, size: WorldSize) -> list[Document]:
    """The part's documents; each benchmark has a random stream of its own."""
    rng = np.random.default_rng([seed, crc32(part.task.encode())])
    supply = Fresh(size)
    wanted = max(samples, _LEAST.get(part.task, 0))
    made: list[Document] = []
    index = 0
    while len(made) < wanted:
        made += _maker_of(part.task)(rng, index, supply)
        index += 1
    return made


def _png(document: Document, name: str) -> dict[str, Any]:
    buffer = BytesIO()
    render(document.images[name]).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _write_rows(part: Task, rows: Sequence[Document], folder: Path) -> None:
    """One parquet file: OWNER/NAME/[SUBSET/]SPLIT-00000-of-00001.parquet."""
    with extra("eval"):
        from datasets import Dataset, Features, Image, disable_progress_bars

    disable_progress_bars()
    pictures = list(rows[0].images)
    table = Dataset.from_list([row.columns for row in rows])
    features = Features({**table.features, **{name: Image() for name in pictures}})
    for name in pictures:
        table = table.add_column(name, [_png(row, name) for row in rows])
    target = folder / (part.subset or "data") / f"{part.split}-00000-of-00001.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    table.cast(features).to_parquet(target)


def _card(subsets: Sequence[tuple[str, str]]) -> str:
    """A README whose header names the dataset's configurations (name, split)."""
    lines = ["---", "configs:"]
    for name, split in subsets:
        lines += [
            f"- config_name: {name}",
            "  data_files:",
            f"  - split: {split}",
            f"    path: {name}/{split}-*",
        ]
    return "\n".join([*lines, "---", "A small stand-in for the dataset of this name.", ""])


def _write_media(rows: Sequence[Document], folder: Path, fps: int) -> None:
    for row in rows:
        if row.clip is not None:
            target = folder / row.file
            target.parent.mkdir(parents=True, exist_ok=True)
            write_video(row.clip, target, fps)
        for name, text in row.texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


def write_benchmarks(
    folder: Path,
    samples: int,
    seed: int,
    *,
    size: WorldSize | None = None,
    columns: Sequence[Benchmark] = BENCHMARKS,
) -> dict[str, list[str]]:
    """Write stand-ins for benchmarks into a benchmark home.

    Args:
        folder: the benchmark home; created, existing files of the same names are overwritten.
        samples: rows a task; MME and MLVU get more where their scores need every category.
        seed: of everything; the same arguments give the same rows and pixels.
        size: of pictures and clips; that of the manifests' media by default.
        columns: which benchmarks.

    Returns:
        For each lmms-eval task, a reply that scores for each of its rows, in order.
    """
    size = size or WorldSize()
    replies: dict[str, list[str]] = {}
    repositories: dict[str, dict[str, str]] = {}
    for part in (part for column in columns for part in column.parts):
        twin = _TWINS.get(part.task, part.task)
        if twin not in replies:
            source = part if twin == part.task else _part(twin)
            rows = _make(source, samples, seed, size)
            _write_rows(source, rows, folder / "hub" / source.repository)
            _write_media(rows, folder, size.fps)
            replies[twin] = [row.reply for row in rows]
        replies[part.task] = replies[twin]
        if part.subset:
            repositories.setdefault(part.repository, {})[part.subset] = part.split
    for repository, subsets in repositories.items():
        card = folder / "hub" / repository / "README.md"
        card.write_text(_card(list(subsets.items())), encoding="utf-8")
    wanted = [part.task for column in columns for part in column.parts]
    return {task: replies[task] for task in wanted}


def _maker_of(task: str) -> Maker:
    """What makes the rows that a task reads."""
    return MAKERS[_TWINS.get(task, task)]


def _part(task: str) -> Task:
    return next(part for column in BENCHMARKS for part in column.parts if part.task == task)


def training_examples(
    columns: Sequence[Benchmark],
    count: int,
    seed: int,
    folder: Path,
    *,
    size: WorldSize | None = None,
) -> list[Example]:
    """Examples in the benchmarks' answer formats, with lmms-eval's own prompts.

    They go the way of the evaluation: a benchmark home is written and read back through lmms-eval's
    tasks. Give a seed that no benchmark is evaluated with.

    Args:
        columns: which benchmarks.
        count: examples in all, spread evenly over their tasks.
        seed: of the stand-ins.
        folder: where they go; the examples' videos stay there.
        size: of pictures and clips; that of the manifests' media by default.

    Returns:
        `count` examples, the tasks in turn.
    """
    from sf.evaluation.tasks import benchmark_home, build_task, documents

    parts = [part for column in columns for part in column.parts]
    each = -(-count // len(parts))
    replies = write_benchmarks(folder, each, seed, size=size, columns=columns)
    made: list[list[Example]] = []
    with tempfile.TemporaryDirectory() as cache, benchmark_home(folder, Path(cache)):
        for part in parts:
            task = build_task(part, folder)
            pairs = zip(documents(task), replies[part.task], strict=True)
            made.append(
                [_example(part, turns, reply) for (_, turns), reply in pairs][:each],
            )
    turns = [example for group in zip(*made, strict=True) for example in group]
    return turns[:count]


def _example(part: Task, turns: list[dict[str, Any]], target: str) -> Example:
    content = turns[0]["content"]
    media = next(item for item in content if item["type"] != "text")
    text = "".join(item["text"] for item in content if item["type"] == "text")
    is_video = media["type"] == "video"
    source = Path(media["url"]) if is_video else media["url"]
    return Example(part.task, source, "video" if is_video else "image", text, target)
