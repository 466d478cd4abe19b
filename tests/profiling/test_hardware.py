"""The requested device, its description, and whether it was throttled or busy."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from sf.errors import EnvironmentFault
from sf.profiling import hardware
from sf.profiling.hardware import after, describe, gpu_state, pace, read_state, require_device
from sf.profiling.roofline import Ceilings

CUDA = torch.device("cuda", 0)
LINE = "570.86.15, 1215, 1980, 3201, 71, 690.12, 97, 0x0000000000000024\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(EnvironmentFault, match="cuda"):
        require_device("cuda")


def test_the_machine_is_described() -> None:
    facts = describe(require_device("cpu"))
    assert facts["device"] == "cpu"
    assert facts["host"]["cores"] >= 1
    assert {"versions", "commit", "dirty", "threads", "notes"} <= set(facts)
    json.dumps(facts)


@pytest.mark.parametrize(("load", "busy"), [(0.1, False), (3.9, False), (4.1, True)])
def test_a_busy_cpu_is_noted(load: float, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than half of its eight cores."""
    made = {"cpu": "made", "cores": 8}
    monkeypatch.setattr("sf.profiling.hardware.hardware", lambda: made)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (load, load, load))
    assert bool(describe(torch.device("cpu"))["notes"]) == busy


@pytest.mark.parametrize(
    ("used_gib", "percent", "words"),
    [
        (0.8, 3, []),  # the process's own context is not a neighbour
        (0.8, 60, ["busy: 60 %"]),
        (9.0, 3, ["shared: 9.0 GiB"]),
        (9.0, 60, ["busy: 60 %", "shared: 9.0 GiB"]),
    ],
)
def test_a_busy_gpu_is_noted(
    used_gib: float, percent: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counters are made up, because a CPU has none."""
    total = 140 * 2**30
    facts = SimpleNamespace(name="made", major=9, minor=0)
    for name, value in (
        ("get_device_properties", facts),
        ("mem_get_info", (total - int(used_gib * 2**30), total)),
        ("memory_reserved", 0),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *given, value=value: value)
    line = LINE.replace(" 97,", f" {percent},")
    monkeypatch.setattr(hardware, "gpu_state", lambda device: read_state(line))
    described = describe(CUDA)
    assert described["gpu"]["state"]["driver_version"] == "570.86.15"
    assert len(described["notes"]) == len(words)
    assert all(word in note for word, note in zip(words, described["notes"], strict=True))
    json.dumps(described)


def test_nvidia_smi_is_read() -> None:
    state = read_state(LINE)
    assert state is not None
    assert state["driver_version"] == "570.86.15"
    assert state["clocks.sm"] == 1215.0
    assert state["throttled"] == ["power cap", "temperature"]
    idle = read_state("570.86, 345, 1980, 2619, 31, [N/A], 0, 0x0000000000000001")
    assert idle is not None
    assert idle["throttled"] == []
    assert idle["power.draw"] is None
    unknown = read_state("570.86, N/A, 1980, 2619, 31, [N/A], 0, Not Active")
    assert unknown is not None
    assert (unknown["clocks.sm"], unknown["throttled"]) == (None, [])
    assert read_state("") is None
    assert read_state("No devices were found") is None


@pytest.mark.parametrize("refused", hardware.REASONS)
def test_drivers_of_both_names_are_asked(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The field was renamed: newer drivers may not know the old name, nor older ones the new."""
    asked: list[str] = []

    def answer(command: list[str], **given: Any) -> Any:
        asked.append(command[1])
        if refused in command[1]:
            raise subprocess.CalledProcessError(2, command)
        return SimpleNamespace(stdout=LINE)

    monkeypatch.setattr(hardware.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(hardware.subprocess, "run", answer)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-cd")
    )
    state = gpu_state(CUDA)
    assert state is not None
    assert state["throttled"] == ["power cap", "temperature"]
    assert len(asked) == 1 + (refused == hardware.REASONS[0])


def test_a_throttled_gpu_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[torch.device] = []
    monkeypatch.setattr(hardware, "_load", loaded.append)
    monkeypatch.setattr(hardware, "gpu_state", lambda device: read_state(LINE))
    reasons = "the GPU was throttled under load at the end (power cap, temperature)"
    assert after(CUDA) == [f"{reasons}: 1215 of 1980 MHz"]
    assert loaded == [CUDA]
    unknown = LINE.replace("1215", "[N/A]")
    monkeypatch.setattr(hardware, "gpu_state", lambda device: read_state(unknown))
    assert after(CUDA) == [reasons]


def test_a_cpu_has_no_gpu_state() -> None:
    assert gpu_state(torch.device("cpu")) is None
    assert after(torch.device("cpu")) == []


@pytest.mark.parametrize(
    ("products", "copies", "noted"),
    [(1.0, 1.0, False), (0.95, 1.05, False), (0.8, 1.0, True), (1.0, 0.85, True), (1.3, 1.0, True)],
)
def test_a_device_that_changed_its_pace_is_noted(
    products: float, copies: float, noted: bool
) -> None:
    notes = pace(Ceilings(1e12, 1e10), Ceilings(products * 1e12, copies * 1e10))
    assert bool(notes) == noted
    if noted:
        assert f"products ran at {100 * products:.0f} %" in notes[0]
        assert f"copies at {100 * copies:.0f} %" in notes[0]
