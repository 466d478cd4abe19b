"""Manifests: one parquet file per split, one row per question.

Media are never copied: a row refers to its media relative to a data root, which is stored in the
file's metadata (relative to the manifest's folder if it lies next to it, so that a results folder
can be moved).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.atomic_files import replacing
from sf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "DATA_TYPES",
    "PROBLEM_TYPES",
    "SPLITS",
    "Row",
    "manifest_schema",
    "read_manifest",
    "write_manifest",
]

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
DATA_TYPES = ("image", "video")
SPLITS = ("train", "calibration", "heldout")
_ROOT_KEY = b"data_root"


@dataclass(frozen=True, slots=True)
class Row:
    """One question about one image or video.

    Attributes:
        id: stable and unique within its source.
        problem: the question, without options and instructions.
        problem_type: one of `PROBLEM_TYPES`.
        data_type: "image" or "video".
        options: as in the source, each with its letter; empty unless multiple choice.
        solution: as in the source, "<answer>...</answer>".
        answer: parsed from the solution by the rule of the problem type (`sf.data.answers`).
        media: POSIX path of the media relative to the data root; "ARCHIVE.zip!/MEMBER" inside an
            archive (see `sf.data.media`).
        data_source: the dataset of the row.
        data_root: absolute folder that `media` is relative to.
        width, height: of the media in pixels; 0 before the media pass.
        num_frames: video frames in the file; 1 for an image, 0 before the media pass.
        fps: frames per second; 0 for an image.
        duration_s: seconds; 0 for an image.
        codec: "png", "jpeg", "h264", ...; empty before the media pass.
        visual_tokens: placeholder tokens of the media in a prompt under the configured bounds; 0
            before the media pass.
    """

    id: str
    problem: str
    problem_type: str
    data_type: str
    options: tuple[str, ...]
    solution: str
    answer: str
    media: str
    data_source: str
    data_root: str = ""
    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: float = 0.0
    duration_s: float = 0.0
    codec: str = ""
    visual_tokens: int = 0

    @property
    def data_sources(self) -> frozenset[str]:
        """The names that select the row: its dataset, and top folders on disk and in an archive."""
        folders = (part.lstrip("/").split("/")[0] for part in self.media.split("!/"))
        return frozenset({self.data_source, *folders})

    @property
    def media_path(self) -> Path:
        """Path of the media: data root and `media` joined."""
        return Path(self.data_root) / self.media


_STORED = tuple(field.name for field in fields(Row) if field.name != "data_root")


@cache
def manifest_schema() -> pa.Schema:
    """The columns of a manifest and their types."""
    import pyarrow as pa

    types: dict[str, pa.DataType] = {
        "options": pa.list_(pa.string()),
        "width": pa.int32(),
        "height": pa.int32(),
        "num_frames": pa.int32(),
        "fps": pa.float64(),
        "duration_s": pa.float64(),
        "visual_tokens": pa.int32(),
    }
    for name in ("problem_type", "data_type", "data_source", "codec"):
        types[name] = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([pa.field(name, types.get(name, pa.string())) for name in _STORED])


def write_manifest(path: Path, rows: Iterable[Row], data_root: Path) -> None:
    """Write rows as parquet, atomically.

    Args:
        path: the manifest; its folder exists.
        rows: written in this order; their `data_root` is not stored.
        data_root: the folder that the rows' `media` are relative to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = rows if isinstance(rows, Sequence) else list(rows)
    schema = manifest_schema()
    columns = {name: [getattr(row, name) for row in rows] for name in _STORED}
    columns["options"] = [list(options) for options in columns["options"]]
    folder, root = path.parent.resolve(), data_root.resolve()
    stored = os.path.relpath(root, folder) if root.is_relative_to(folder) else str(root)
    table = pa.table(columns, schema=schema.with_metadata({_ROOT_KEY: stored.encode()}))
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd")


def read_manifest(path: Path) -> list[Row]:
    """Read a manifest with its media references resolved against the stored data root.

    Raises:
        DataError: the file is missing, or not a parquet manifest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            "manifest", str(path), f"it must be a readable parquet file: {error}", "run `prepare`"
        ) from error
    metadata = table.schema.metadata or {}
    missing = [name for name in _STORED if name not in table.column_names]
    if missing or _ROOT_KEY not in metadata:
        raise DataError(
            "manifest", str(path), f"it lacks {missing or 'its data root'}", "run `prepare` again"
        )
    root = os.path.normpath(path.parent.resolve() / metadata[_ROOT_KEY].decode())
    records: list[dict[str, Any]] = table.select(_STORED).to_pylist()
    for record in records:
        record["options"] = tuple(record["options"])
        record["data_root"] = root
    return [Row(**record) for record in records]
