"""The device that was measured, and whether it was busy with something else."""

from __future__ import annotations

import platform
from typing import Any

import psutil
import torch

from sf.errors import EnvironmentFault
from sf.provenance import commit, hardware, versions

__all__ = ["describe", "require_device"]

BUSY_LOAD = 0.5  # load average per core above which a CPU is called busy


def require_device(name: str) -> torch.device:
    """The device that was asked for.

    Raises:
        EnvironmentFault: it is a GPU and there is none; a CPU's figures would be no answer.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            "device",
            name,
            "was asked for and torch finds no CUDA device",
            "run on a GPU machine, or set runtime.device to cpu",
        )
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, commit and what else was running, as JSON-able content.

    Call it before the measurements: its notes say in which state they found the machine.
    """
    found: dict[str, Any] = {
        "device": device.type,
        "host": hardware(),
        "versions": versions(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        **commit(),
        "notes": [],
    }
    if device.type == "cuda":
        found["gpu"] = _gpu(device)
        busy = found["gpu"]["used_by_others_gib"] > 0.5
        if busy:
            used = found["gpu"]["used_by_others_gib"]
            found["notes"].append(f"the GPU was shared: {used:.1f} GiB held by other processes")
    else:
        load, cores = psutil.getloadavg()[0], found["host"]["cores"]
        found["load_average"] = load
        frequency = psutil.cpu_freq()
        found["cpu_mhz"] = None if frequency is None else round(frequency.current)
        if load / cores > BUSY_LOAD:
            found["notes"].append(f"the CPU was busy: load average {load:.1f} on {cores} cores")
    return found


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "memory_gib": round(total / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "used_by_others_gib": round((total - free - torch.cuda.memory_reserved(device)) / 2**30, 2),
    }
