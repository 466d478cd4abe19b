"""The prepared data as MLflow's `Dataset` entity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sf.atomic_files import write_text
from sf.data.manifest import Row, manifest_schema

__all__ = ["write_dataset_record"]


def _digest(splits: Mapping[str, Sequence[Row]]) -> str:
    """Depends on the rows' contents and sides, not on the location of the media."""
    state = hashlib.blake2b(digest_size=8)
    for split, rows in splits.items():
        for row in sorted(rows, key=lambda row: row.id):
            state.update("\0".join((split, row.id, row.problem, *row.options, row.media)).encode())
            state.update(row.answer.encode())
    return state.hexdigest()


def write_dataset_record(folder: Path, source: str, splits: Mapping[str, Sequence[Row]]) -> None:
    """Write `dataset.json`: name, digest, source, schema and profile, as strings for MLflow."""
    schema = [
        {"name": field.name, "type": str(field.type), "required": True}
        for field in manifest_schema()
    ]
    record = {
        "name": "video-r1-260k" if source != "synthetic" else "mini-world",
        "digest": _digest(splits),
        "source_type": "hub" if source.startswith("hub:") else "local",
        "source": json.dumps({"uri": source}),
        "schema": json.dumps({"mlflow_colspec": schema}),
        "profile": json.dumps({f"num_{split}": len(rows) for split, rows in splits.items()}),
    }
    write_text(folder / "dataset.json", json.dumps(record, indent=1) + "\n")
