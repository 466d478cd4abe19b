"""The table that every benchmark prints and writes, row by row."""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sf.atomic_files import write_text

HEAD = "| what | {} | 95 % interval | unit | target |\n|---|---:|---|---|---|"


@dataclass(frozen=True)
class Row:
    """One line of the table; None for what does not apply."""

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    target: float | None = None
    better: str = "none"

    def __str__(self) -> str:
        target = "" if self.target is None else f"{self.target:g} {self._verdict()}"
        none = self.low is None or self.high is None or self.low == self.high
        span = "" if none else f"{self.low:.3g} - {self.high:.3g}"
        return f"| {self.name} | {self.value:.3g} | {span} | {self.unit} | {target} |"

    def _verdict(self) -> str:
        assert self.target is not None
        lower = self.better == "lower"
        met = self.value <= self.target if lower else self.value >= self.target
        return "met" if met else "missed"


def exact(name: str, value: float, unit: str) -> Row:
    """A row of a quantity that was counted, not timed."""
    return Row(name, value, value, value, unit)


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[draws // 40], medians[-draws // 40]


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON; the file is complete at any time."""
    write_text(file, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


class Report:
    """Prints rows as they come; the JSON file is complete after each of them.

    A run that is killed or runs out of memory therefore loses only what it had not yet measured.

    Args:
        head: one line above the table: device, threads, repeats.
        file: for the rows; None for none.
        middle: what the value of a row is.
    """

    def __init__(self, head: str, file: Path | None, middle: str = "median") -> None:
        self.file, self.rows = file, list[Row]()
        self._began = time.monotonic()
        print(f"{head}, load {os.getloadavg()[0]:.1f}\n\n{HEAD.format(middle)}", flush=True)

    def begin(self, what: str) -> None:
        """Print on stderr what is measured next."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {what}", file=sys.stderr, flush=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Print rows and write them with the earlier ones."""
        self.rows += rows
        for row in rows:
            print(row, flush=True)
        if self.file is not None:
            write_rows(self.file, self.rows)

    def end(self) -> None:
        """Print the elapsed time."""
        self.begin(f"done: {len(self.rows)} rows")


def arguments_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=str(doc).splitlines()[0])
    parser.add_argument("--json", type=Path, help="rows: name, value, low, high, unit, target")
    return parser
