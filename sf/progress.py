"""Progress of a long loop: a bar on a terminal, plain lines with an ETA elsewhere.

transformers' own bars are disabled: they count tensors and would interrupt these lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sf.ranks import rank

__all__ = ["Progress", "progress", "without_tensor_bars"]

INTERVAL_S = 10.0


@dataclass
class Progress:
    """Counts finished units and reports them.

    Args:
        title: the counted units.
        total: total number of units.
        done: units that an earlier run finished, excluded from the rate.
    """

    title: str
    total: int
    done: int = 0
    _bar: Any = field(default=None, repr=False)
    _started: float = field(default_factory=time.monotonic, repr=False)
    _first: int = field(default=0, repr=False)
    _shown: float = field(default=0.0, repr=False)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report `count` more finished units, with a short note such as the current loss."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self._shown >= INTERVAL_S or self.done == self.total:
            self._shown = now
            print(self.line(now, note), file=sys.stderr, flush=True)

    def line(self, now: float, note: str = "") -> str:
        """One line: title, done/total, elapsed and remaining seconds, note."""
        elapsed = now - self._started
        fresh = self.done - self._first
        left = f"{elapsed / fresh * (self.total - self.done):.0f} s left" if fresh else "? left"
        text = f"{self.title}: {self.done}/{self.total}, {elapsed:.0f} s, {left}"
        return f"{text}, {note}" if note else text


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Progress]:
    """Show the progress of a loop on stderr.

    Args:
        title: the counted units.
        total: total number of units.
        done: units that an earlier run finished.

    Yields:
        A `Progress`; call `advance` on it.
    """
    counter = Progress(title, total, done, _first=done)
    if rank() or not sys.stderr.isatty():
        counter._shown = counter._started
        yield counter
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        bar.add_task(title, total=total, completed=done, note="")
        counter._bar = bar
        yield counter


@contextmanager
def without_tensor_bars() -> Iterator[None]:
    """Disable transformers' progress bars over tensors, but not those of downloads."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    if are_progress_bars_disabled() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # also disables those of huggingface_hub
    enable_progress_bars()
    try:
        yield
    finally:
        logging.enable_progress_bar()
