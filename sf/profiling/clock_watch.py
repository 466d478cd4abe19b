"""A GPU's clocks, sampled during the measurements."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from statistics import median
from types import TracebackType
from typing import Any

import torch

from sf.profiling.hardware import gpu_state

__all__ = ["ClockWatch", "summary"]

PERIOD_S = 0.5
_FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
}


class ClockWatch:
    """Samples a GPU's state twice a second in a thread; on a CPU it does nothing.

    Args:
        device: the monitored device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._samples: list[tuple[float, dict[str, Any]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> ClockWatch:
        if self.device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            began, state = time.monotonic(), gpu_state(self.device)
            if state is None:
                return
            self._samples.append((began, state))
            self._stop.wait(PERIOD_S)

    def since(self, began: float) -> dict[str, Any] | None:
        """The clocks since a time of `time.monotonic`; None without samples.

        An interval shorter than the sampling period gets the sample before it.
        """
        samples = list(self._samples)
        later = [state for at, state in samples if at >= began]
        return summary(later or [state for _, state in samples[-1:]])


def summary(states: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Minimum, median and maximum of each value, and all throttling reasons."""
    if not states:
        return None
    ranges: dict[str, Any] = {}
    for name, title in _FIELDS.items():
        values = [state[name] for state in states if state[name] is not None]
        ranges[title] = [min(values), median(values), max(values)] if values else None
    reasons = {reason for state in states for reason in state["throttled"]}
    return {**ranges, "throttled": sorted(reasons), "samples": len(states)}
