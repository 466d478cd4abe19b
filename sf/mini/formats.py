"""Any question about any scene or clip, put as each of the benchmarks puts its questions.

A base model of minutes has to learn what the benchmarks want to hear without learning a few
stand-ins by heart: one scene is asked about in many formats, and each format about many scenes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sf.evaluation.columns import Column
from sf.evaluation.tasks import benchmark_home, build_task
from sf.mini.benchmarks import maker_of, write_benchmarks
from sf.mini.documents import About, NotAskable
from sf.mini.rows import WorldSize
from sf.mini.world import Clip, Scene

__all__ = ["Formats"]

_ROWS = 6  # stand-ins a task, for subtitles; a document's number is below it
_TRIES = 20


class Formats:
    """Prompts of lmms-eval's own tasks for questions of the mini world.

    Args:
        columns: whose formats.
        folder: scratch; a few stand-ins are written into it, and their subtitles are read later.
        seed: of these stand-ins.
        size: of the media that will be asked about.
    """

    def __init__(
        self, columns: Sequence[Column], folder: Path, seed: int, size: WorldSize | None = None
    ) -> None:
        self._size = size or WorldSize()
        self._tasks: dict[str, list[Any]] = {"image": [], "video": []}
        write_benchmarks(folder, _ROWS, seed, size=self._size, columns=columns)
        with tempfile.TemporaryDirectory() as cache, benchmark_home(folder, Path(cache)):
            for column in columns:
                self._tasks[column.kind] += [build_task(part, folder) for part in column.parts]

    def turns(
        self, subject: Scene | Clip, rng: np.random.Generator, count: int
    ) -> tuple[tuple[str, str], ...]:
        """Up to `count` pairs of prompt and reply about a scene or a clip.

        Args:
            subject: what is shown.
            rng: chooses formats and questions.
            count: how many; fewer come back where the subject allows few.
        """
        tasks = self._tasks["image" if isinstance(subject, Scene) else "video"]
        supply = About(subject, self._size)
        found: dict[str, str] = {}
        for _ in range(_TRIES * count):
            if len(found) == count:
                break
            task = tasks[int(rng.integers(len(tasks)))]
            try:
                made = maker_of(task.task_name)(rng, int(rng.integers(_ROWS)), supply)
            except NotAskable:
                continue
            document = made[int(rng.integers(len(made)))]
            found.setdefault(task.doc_to_text(dict(document.columns)), document.reply)
        return tuple(found.items())
