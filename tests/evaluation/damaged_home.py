"""Changes of a benchmark home that a test may damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORIES = {
    "chartqa": "lmms-lab-encoder/ChartQA",
    "egoschema": "lmms-eval/egoschema",
    "mme": "lmms-lab-encoder/MME",
    "mmstar": "Lin-Chen/MMStar",
    "ocrbench": "echo840/OCRBench",
    "videomme": "lmms-eval/Video-MME",
}


def change_column(home: Path, name: str, column: str, change: Callable[[list[Any]], Any]) -> None:
    """Change the values of a table's column."""
    (file,) = (home / "hub" / REPOSITORIES[name]).rglob("*.parquet")
    table = pq.read_table(file)
    values = table.column(column).to_pylist()
    change(values)
    kind = table.schema.field(column)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, kind, pa.array(values, kind.type)), file)


def damage(home: Path, name: str, change: Callable[[bytes], bytes], *numbers: int) -> None:
    """Change the images of some rows of a table."""

    def change_some(pictures: list[Any]) -> None:
        for number in numbers:
            pictures[number]["bytes"] = change(pictures[number]["bytes"])

    change_column(home, name, "image", change_some)
