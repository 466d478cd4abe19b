"""A GPU's clocks beside the measurements."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from sf.profiling import clock_watch
from sf.profiling.clock_watch import ClockWatch, summary


def state(sm: float | None, throttled: list[str]) -> dict[str, Any]:
    return {
        "clocks.sm": sm,
        "clocks.mem": 3201.0,
        "temperature.gpu": 60.0,
        "power.draw": None,
        "throttled": throttled,
    }


def test_least_median_and_most_with_every_reason() -> None:
    summarised = summary([state(1980.0, []), state(1200.0, ["power cap"]), state(None, [])])
    assert summarised == {
        "sm_mhz": [1200.0, 1590.0, 1980.0],
        "memory_mhz": [3201.0, 3201.0, 3201.0],
        "celsius": [60.0, 60.0, 60.0],
        "watts": None,
        "throttled": ["power cap"],
        "samples": 3,
    }
    assert summary([]) is None


def test_a_window_holds_its_own_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's clocks are not those of the step before."""
    now = [1000.0]
    monkeypatch.setattr(clock_watch, "PERIOD_S", 0.01)
    monkeypatch.setattr(clock_watch, "gpu_state", lambda device: state(now[0], []))
    with ClockWatch(torch.device("cuda")) as clocks:
        time.sleep(0.1)
        now[0] = 2000.0
        time.sleep(0.05)
        began = time.monotonic()
        time.sleep(0.1)
        later = clocks.since(began)
        assert later is not None
        assert later["sm_mhz"] == [2000.0, 2000.0, 2000.0]
        short = clocks.since(time.monotonic() + 1)  # too short for its own sample
        assert short is not None
        assert short["samples"] == 1
        assert short["sm_mhz"] == [2000.0, 2000.0, 2000.0]  # the latest one
    assert not clocks._thread.is_alive()


def test_a_cpu_has_none() -> None:
    with ClockWatch(torch.device("cpu")) as clocks:
        assert clocks.since(0.0) is None
