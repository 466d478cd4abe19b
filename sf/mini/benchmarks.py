"""Small synthetic stand-ins for the thirteen benchmarks, and training examples in their formats.

`write_benchmarks` writes a benchmark home (see `sf.evaluation.tasks`): parquet files with each
benchmark's columns and dataset configurations, and videos and subtitles at the paths that
lmms-eval's task code expects. lmms-eval's prompts, parsers and aggregation run on them unchanged.
The scores are meaningless outside this synthetic world.
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
_TWINS = {"videomme_w_subtitle": "videomme"}  # both read the same rows
_LEAST = {"mme": 4 * len(MME_CATEGORIES), "mlvu_dev": len(MLVU_TYPES)}
"""Fewest rows for which lmms-eval's aggregation has every category, so that the full score is
possible. MME has two pictures with two questions per category; a single one gives no interval."""


@dataclass(frozen=True)
class Example:
    """One training example in a benchmark's answer format.

    Attributes:
        task: lmms-eval's task name.
        media: a picture, or the path of a video.
        data_type: "image" or "video".
        prompt: lmms-eval's text for the model.
        target: the shortest correct reply.
    """

    task: str
    media: Image | Path
    data_type: Literal["image", "video"]
    prompt: str
    target: str


def _make(task: Task, samples: int, seed: int, size: WorldSize) -> list[Document]:
    """The task's documents; each benchmark has its own random stream."""
    rng = np.random.default_rng([seed, crc32(task.name.encode())])
    supply = Fresh(size)
    wanted = max(samples, _LEAST.get(task.name, 0))
    made: list[Document] = []
    index = 0
    while len(made) < wanted:
        made += _maker_of(task.name)(rng, index, supply)
        index += 1
    return made


def _png(document: Document, name: str) -> dict[str, Any]:
    buffer = BytesIO()
    render(document.images[name]).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _write_rows(task: Task, rows: Sequence[Document], folder: Path) -> None:
    """One parquet file: OWNER/NAME/[SUBSET/]SPLIT-00000-of-00001.parquet."""
    with extra("eval"):
        from datasets import Dataset, Features, Image, disable_progress_bars

    disable_progress_bars()
    pictures = list(rows[0].images)
    table = Dataset.from_list([row.columns for row in rows])
    features = Features({**table.features, **{name: Image() for name in pictures}})
    for name in pictures:
        table = table.add_column(name, [_png(row, name) for row in rows])
    target = folder / (task.subset or "data") / f"{task.split}-00000-of-00001.parquet"
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
    benchmarks: Sequence[Benchmark] = BENCHMARKS,
) -> dict[str, list[str]]:
    """Write stand-ins for benchmarks into a benchmark home.

    Args:
        folder: the benchmark home; created, existing files of the same names are overwritten.
        samples: rows per task; MME and MLVU get more if their scores need every category.
        seed: the same arguments give the same rows and pixels.
        size: of pictures and clips; by default that of the manifests' media.
        benchmarks: the benchmarks to write.

    Returns:
        For each lmms-eval task, a correct reply for each of its rows, in order.
    """
    size = size or WorldSize()
    replies: dict[str, list[str]] = {}
    repositories: dict[str, dict[str, str]] = {}
    for task in (task for benchmark in benchmarks for task in benchmark.tasks):
        twin = _TWINS.get(task.name, task.name)
        if twin not in replies:
            source = task if twin == task.name else _task_named(twin)
            rows = _make(source, samples, seed, size)
            _write_rows(source, rows, folder / "hub" / source.repository)
            _write_media(rows, folder, size.fps)
            replies[twin] = [row.reply for row in rows]
        replies[task.name] = replies[twin]
        if task.subset:
            repositories.setdefault(task.repository, {})[task.subset] = task.split
    for repository, subsets in repositories.items():
        card = folder / "hub" / repository / "README.md"
        card.write_text(_card(list(subsets.items())), encoding="utf-8")
    names = [task.name for benchmark in benchmarks for task in benchmark.tasks]
    return {name: replies[name] for name in names}


def _maker_of(task: str) -> Maker:
    """The maker of a task's rows."""
    return MAKERS[_TWINS.get(task, task)]


def _task_named(name: str) -> Task:
    return next(task for benchmark in BENCHMARKS for task in benchmark.tasks if task.name == name)


def training_examples(
    benchmarks: Sequence[Benchmark],
    count: int,
    seed: int,
    folder: Path,
    *,
    size: WorldSize | None = None,
) -> list[Example]:
    """Training examples in the benchmarks' answer formats, with lmms-eval's prompts.

    They are produced as in the evaluation: a benchmark home is written and read back through
    lmms-eval's tasks. Use a seed that no evaluated benchmark has.

    Args:
        benchmarks: the benchmarks to use.
        count: total number of examples, spread evenly over the tasks.
        seed: of the stand-ins.
        folder: where they are written; the examples' videos stay there.
        size: of pictures and clips; by default that of the manifests' media.

    Returns:
        `count` examples that cycle through the tasks.
    """
    from sf.evaluation.tasks import benchmark_home, build_task, documents

    tasks = [task for benchmark in benchmarks for task in benchmark.tasks]
    each = -(-count // len(tasks))
    replies = write_benchmarks(folder, each, seed, size=size, benchmarks=benchmarks)
    made: list[list[Example]] = []
    with tempfile.TemporaryDirectory() as cache, benchmark_home(folder, Path(cache)):
        for task in tasks:
            lmms_task = build_task(task, folder)
            pairs = zip(documents(lmms_task), replies[task.name], strict=True)
            made.append(
                [_example(task, turns, reply) for (_, turns), reply in pairs][:each],
            )
    turns = [example for group in zip(*made, strict=True) for example in group]
    return turns[:count]


def _example(task: Task, turns: list[dict[str, Any]], target: str) -> Example:
    content = turns[0]["content"]
    media = next(item for item in content if item["type"] != "text")
    text = "".join(item["text"] for item in content if item["type"] == "text")
    is_video = media["type"] == "video"
    source = Path(media["url"]) if is_video else media["url"]
    return Example(task.name, source, "video" if is_video else "image", text, target)
