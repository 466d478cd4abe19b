"""Rows and finished steps of a session on disk, complete after each step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from table import Row

from sf.atomic_files import write_text

__all__ = ["ROWS", "STEPS", "Journal"]

ROWS, STEPS = "gpu_session.json", "gpu_session_steps.json"
DONE = "done"


class Journal:
    """Two files in a folder. One process writes at a time: the parent waits for its section.

    Args:
        folder: of one device.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all calls so far."""
        return _read(self.folder / ROWS, [])

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """By "section: step": status, time of the entry, seconds or reason."""
        return _read(self.folder / STEPS, {})

    def is_done(self, section: str, step: str) -> bool:
        """Whether an earlier call has finished a step."""
        return self.steps.get(f"{section}: {step}", {}).get("status") == DONE

    def tried_since(self, section: str, step: str, began: float) -> bool:
        """Whether a step was started, skipped, interrupted or finished after a `time.time`."""
        return self.steps.get(f"{section}: {step}", {}).get("at", 0.0) >= began

    def begin(self, section: str, step: str) -> None:
        """Mark a step as running; it stays so if it is interrupted."""
        self._note(section, step, status="running")

    def add(
        self, section: str, step: str, rows: Sequence[Row], facts: dict[str, Any], seconds: float
    ) -> None:
        """Add the rows of a finished step, in place of its earlier rows."""
        old = [row for row in self.rows if (row["section"], row["step"]) != (section, step)]
        new = [{**asdict(row), "section": section, "step": step, **facts} for row in rows]
        lines = ",\n".join(json.dumps(row, sort_keys=True) for row in [*old, *new])
        write_text(self.folder / ROWS, f"[\n{lines}\n]\n" if lines else "[]\n")
        self._note(section, step, status=DONE, seconds=round(seconds, 2))

    def note(self, section: str, step: str, status: str, reason: str) -> None:
        """Note a step without rows: failed, skipped or interrupted."""
        self._note(section, step, status=status, reason=reason)

    def cut(self, section: str, reason: str) -> list[str]:
        """Mark the section's running steps as interrupted; returns their names."""
        running = [
            name.partition(": ")[2]
            for name, step in self.steps.items()
            if name.startswith(f"{section}: ") and step["status"] == "running"
        ]
        for step in running:
            self.note(section, step, "cut", reason)
        return running

    def _note(self, section: str, step: str, **facts: Any) -> None:
        steps = {**self.steps, f"{section}: {step}": {**facts, "at": time.time()}}
        write_text(self.folder / STEPS, json.dumps(steps, indent=1, sort_keys=True) + "\n")


def _read(file: Path, empty: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else empty
