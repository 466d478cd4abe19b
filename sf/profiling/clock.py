"""Time marks on the measured device.

A CUDA kernel is still running when its call returns. On CUDA, a mark is therefore an event in the
stream and times are read after one synchronisation; on a CPU, it is the performance counter.
"""

from __future__ import annotations

import time
from typing import Any

import torch

__all__ = ["Clock"]


class Clock:
    """Time marks and the milliseconds between them.

    Args:
        device: the measured device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Record the current point in the device's work."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def synchronize(self) -> None:
        """Wait until the device has passed all marks."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks, after `synchronize`."""
        if self.cuda:
            return float(start.elapsed_time(end))
        return 1000.0 * float(end - start)
