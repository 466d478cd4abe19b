"""Folders in Video-R1's layout, and the whole preparation run over them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from clips import record, write_clip, write_picture

from sf.data.card import summary
from sf.data.manifest import SPLITS, Row, read_manifest
from sf.stages import prepare

VISION = {
    "image_min_pixels": 784,
    "image_max_pixels": 12544,
    "video_min_pixels": 784,
    "video_max_pixels": 12544,
    "video_max_frames": 4,
    "video_fps": 2.0,
}
FIELDS = {
    "calibration_share": 0.2,
    "heldout_share": 0.2,
    "calibration_rows": 1000,
    "heldout_rows": 1000,
    "max_reject_share": 1.0,
}


def parameters(source: Path | str, folder: Path, **changes) -> prepare.Parameters:
    """Parameters of the stage with small bounds; `changes` are of its section or another one."""
    paths = {"output": folder / "result", "benchmarks": changes.pop("benchmarks", None)}
    bounds = {"vision": VISION, "evaluation_vision": changes.pop("evaluation_vision", VISION)}
    own = {**FIELDS, "source": str(source), **changes}
    return prepare.Parameters(seed=0, prepare=own, **bounds, **paths)


def prepared(source: Path | str, folder: Path, **changes) -> tuple[Path, dict[str, float]]:
    """Prepare without the data card; returns the results folder and the figures."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    done = prepare.write_manifests(parameters(source, folder, **changes), folder / "out")
    return folder / "out", summary(done)


def write_source(root: Path, records: list[dict]) -> Path:
    """Write the annotation file of a data root."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "Video-R1-260k.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return root


def used(out: Path) -> dict[str, Row]:
    """All rows of the manifests by id."""
    return {row.id: row for split in SPLITS for row in read_manifest(out / f"{split}.parquet")}


def reasons(out: Path) -> dict[str, str]:
    """The reasons in rejects.parquet, by row id."""
    table = pd.read_parquet(out / "rejects.parquet")
    return dict(zip(table["id"], table["kind"] + ": " + table["reason"], strict=True))


def write_good_source(root: Path) -> Path:
    """Forty rows over 30 pictures and 10 clips."""
    records = []
    for number in range(40):
        if number % 4:
            write_picture(root / f"pictures/{number}.png", shade=number)
            records.append(record(number))
        else:
            (root / "clips").mkdir(exist_ok=True)
            write_clip(root / f"clips/{number}.mp4", 12)
            records.append(
                record(
                    number,
                    data_type="video",
                    path=f"./clips/{number}.mp4",
                    problem_type="numerical",
                    options=[],
                    solution="<answer>1,234</answer>",
                )
            )
    return write_source(root, records)
