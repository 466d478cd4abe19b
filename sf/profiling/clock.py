"""Marks in time on the device that does the work.

A CUDA kernel is still running when its call returns, so on CUDA a mark is an event in the stream
and the times are read after one synchronisation; on a CPU it is the performance counter.
"""

from __future__ import annotations

import time
from typing import Any

import torch

__all__ = ["Clock"]


class Clock:
    """Marks and the milliseconds between them.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        """A point in the device's order of work."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def synchronize(self) -> None:
        """Wait until all marks have been passed."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks, after `synchronize`."""
        if self.cuda:
            return float(start.elapsed_time(end))
        return 1000.0 * float(end - start)
