"""A cell of a paper table: our value, the published one, their difference, and our source.

Values are compared if both are of the same model on the benchmarks' real data. Published values of
another model, or next to results on synthetic data, are for orientation only and get no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json
from sf.errors import DataError
from sf.layout import work_folder
from sf.report.results import Result
from sf.result_key.contents import input_digest

__all__ = [
    "DIFFERS",
    "NOT_COMPARABLE",
    "NOT_PUBLISHED",
    "NOT_RUN",
    "REPRODUCED",
    "Figure",
    "Sources",
    "verdict",
]

TOLERANCE = 1.5
"""Points of 100 within which a published value counts as reproduced."""
REPRODUCED = "reproduced"
DIFFERS = "differs"
NOT_RUN = "not run"
NOT_PUBLISHED = "not published"
NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Figure:
    """One cell.

    Attributes:
        text: our value; empty if not measured.
        value: our value as a number, for sorting.
        interval: its 95 % interval as text.
        published: the published value as text.
        difference: ours minus published as text.
        samples: number of questions or other units; 0 if not applicable.
        verdict: one of this module's verdicts.
        source: index in `Sources.entries`; -1 without a result.
        stale: whether an input of the result has changed since.
        note: further information for the reader.
    """

    text: str = ""
    value: float | None = None
    interval: str = ""
    published: str = ""
    difference: str = ""
    samples: int = 0
    verdict: str = NOT_RUN
    source: int = -1
    stale: bool = False
    note: str = ""


def verdict(measured: float | None, published: float | None, scale: float, comparable: bool) -> str:
    """The verdict on a pair of values.

    Args:
        measured: None if not measured.
        published: None if not in our sources.
        scale: the highest possible value.
        comparable: whether both are of the same model on the same data.
    """
    if measured is None:
        return NOT_RUN
    if published is None:
        return NOT_PUBLISHED
    if not comparable:
        return NOT_COMPARABLE
    return REPRODUCED if abs(measured - published) <= TOLERANCE * scale / 100 else DIFFERS


@dataclass
class Sources:
    """The results behind a table, each once.

    Attributes:
        entries: the displayed information on each result.
        stale: whether an input of each result has changed since.
    """

    entries: list[dict[str, str]] = field(default_factory=list)
    stale: list[bool] = field(default_factory=list)
    _places: dict[Path, int] = field(default_factory=dict)

    def of(self, result: Result) -> int:
        """The index of a result's entry."""
        if result.folder not in self._places:
            changed = self._changed(result)
            self._places[result.folder] = len(self.entries)
            self.entries.append(_entry(result, changed))
            self.stale.append(bool(changed))
        return self._places[result.folder]

    def _changed(self, result: Result) -> list[str]:
        """Names of the inputs whose contents have changed."""
        paths: Mapping[str, str] = result.stamp.get("input_paths", {})
        recorded: Mapping[str, str] = result.stamp.get("inputs", {})
        work = work_folder(result.folder)
        changed = []
        for name, path in paths.items():
            try:
                now = input_digest(Path(path), work)
            except DataError:
                now = ""
            if recorded.get(name) not in (None, now):
                changed.append(name)
        return changed


SHOWN_PARAMETERS = (
    *("method", "value", "evaluate.retention_p", "calibrate.retention_p", "objective.objective"),
    *("seed", "benchmarks.samples", "runtime.dtype", "runtime.device", "vision.image_max_pixels"),
    *("vision.video_max_pixels", "vision.video_max_frames"),
)


def _entry(result: Result, changed: list[str]) -> dict[str, str]:
    stamp, given = result.stamp, result.parameters
    inputs: Mapping[str, str] = stamp.get("inputs", {})
    host: Mapping[str, Any] = stamp.get("hardware", {})
    versions: Mapping[str, str] = stamp.get("versions", {})
    values = [f"{name} = {given[name]}" for name in SHOWN_PARAMETERS if given.get(name) is not None]
    entry = {
        "result": result.folder.as_posix(),
        "key": str(stamp.get("key", "")),
        "commit": result.commit,
        "command": str(stamp.get("command", "")),
        "parameters": ", ".join(values),
        "inputs": ", ".join(f"{name} {digest}" for name, digest in inputs.items()),
        "hardware": ", ".join(f"{name}: {value}" for name, value in host.items()),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "seconds": f"{stamp.get('seconds', 0):,.0f}",
        "MLflow run": _mlflow_run(result.folder),
    }
    if (result.folder / "samples.jsonl").is_file():
        entry["samples"] = (result.folder / "samples.jsonl").as_posix()
    if changed:
        entry["stale"] = f"changed since: {', '.join(changed)}"
    return {name: text for name, text in entry.items() if text}


def _mlflow_run(folder: Path) -> str:
    try:
        return str(read_json(work_folder(folder) / "mlflow.json")["run_id"])
    except (OSError, ValueError):
        return ""  # not logged, or logged by a killed call
