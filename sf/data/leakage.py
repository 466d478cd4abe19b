"""Leakage: training media that are also media of the thirteen benchmarks, by name.

The names come from the media columns of the benchmarks' tables. The stage `benchmarks` collects
them in `NAMES_FILE`, independent of the location of the data; any other folder is searched for
media and parquet tables. Images stored inside tables have no names, so their benchmarks cannot be
checked. A name such as "12" or "image_3" proves nothing and only counts as "unsure".
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sf.data.manifest import Row
from sf.data.schema import RowError

__all__ = [
    "MEDIA_COLUMNS",
    "NAMES_FILE",
    "Leak",
    "benchmark_names",
    "find_leaks",
    "leak_faults",
    "media_name",
    "names_in_folder",
]

NAMES_FILE = Path("tables", "media_names.csv")
"""Of the stage `benchmarks`: task and name of each medium; an empty name for a task without one."""

MEDIA_COLUMNS = ("videoID", "video_id", "video_idx", "video_name", "video", "video_path")
MEDIA_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".png", ".jpg", ".jpeg")
_GENERIC = re.compile(
    r"\d{1,8}|(image|img|video|clip|frame|figure|pic|test|train|val)?[_-]?\d{0,3}"
)


@dataclass(frozen=True, slots=True)
class Leak:
    """A row whose media share a name with a benchmark's media.

    Attributes:
        id: the row's id.
        media: its media path.
        benchmark: the origin of the benchmark's name.
        sure: false for names too general for equality to prove anything.
    """

    id: str
    media: str
    benchmark: str
    sure: bool


def media_name(path: str) -> str:
    """File name without folders and media suffix."""
    name = posixpath.basename(path)
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in MEDIA_SUFFIXES else name


def benchmark_names(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Media name -> its origin, and the tasks whose tables name no media.

    Args:
        folder: the result of the stage `benchmarks`, or any folder with benchmark data.
    """
    if not (folder / NAMES_FILE).is_file():
        return names_in_folder(folder), []
    table = pd.read_csv(folder / NAMES_FILE, dtype=str, keep_default_na=False)
    named = table[table["name"] != ""].drop_duplicates("name")
    without = set(table["task"]) - set(table.loc[table["name"] != "", "task"])
    return dict(zip(named["name"], named["task"], strict=True)), sorted(without)


def names_in_folder(folder: Path) -> dict[str, str]:
    """Media name -> its origin (file below the folder), for all benchmarks in a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if path.suffix.lower() in MEDIA_SUFFIXES:
            names.setdefault(media_name(path.name), place)
        elif path.suffix == ".parquet":
            table = pq.ParquetFile(path)
            columns = [name for name in MEDIA_COLUMNS if name in table.schema_arrow.names]
            for batch in table.iter_batches(columns=columns) if columns else ():
                for column in batch.columns:
                    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                        for value in column.to_pylist():
                            if value:
                                names.setdefault(media_name(value), place)
    return names


def find_leaks(rows: Iterable[Row], names: dict[str, str]) -> list[Leak]:
    """Rows whose media share a name with a benchmark's media."""
    leaks = []
    for row in rows:
        name = media_name(row.media)
        if name in names:
            sure = _GENERIC.fullmatch(name.lower()) is None
            leaks.append(Leak(row.id, row.media, names[name], sure))
    return leaks


def leak_faults(leaks: Sequence[Leak]) -> dict[str, RowError]:
    """The sure leaks as faults by row id."""
    return {
        leak.id: RowError(
            "benchmark leakage", "path", leak.media, f"these media are in {leak.benchmark}"
        )
        for leak in leaks
        if leak.sure
    }
