"""The device that was measured, and whether it was busy with something else."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

import psutil
import torch

from sf.errors import EnvironmentFault
from sf.provenance import commit, hardware, versions

__all__ = ["after", "describe", "gpu_state", "read_state", "require_device"]

BUSY_LOAD = 0.5  # load average per core above which a CPU is called busy
BUSY_GPU = 20  # percent of the last second in which kernels ran, above which a GPU is busy
QUERY = (
    *("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu"),
    *("power.draw", "utilization.gpu", "clocks_throttle_reasons.active"),
)
# NVML's bits that say that the device was held back; idling and set clocks are none.
THROTTLED = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


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
        state = gpu_state(device)
        found["gpu"]["state"] = state
        if state is not None and (state["utilization.gpu"] or 0) > BUSY_GPU:
            share = state["utilization.gpu"]
            found["notes"].append(f"the GPU was busy: {share:g} % before the first measurement")
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


def gpu_state(device: torch.device) -> dict[str, Any] | None:
    """Driver, clocks, temperature, power and load of a GPU now; None where nvidia-smi is not."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    command += ["-i", uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return read_state(done.stdout)


def read_state(line: str) -> dict[str, Any] | None:
    """One line of nvidia-smi's answer to `QUERY`; what it does not know is None."""
    fields = [field.strip() for field in line.strip().splitlines()[0].split(",")] if line else []
    if len(fields) != len(QUERY):
        return None
    state: dict[str, Any] = {}
    for name, text in zip(QUERY, fields, strict=True):
        try:
            state[name] = int(text, 16) if text.startswith("0x") else float(text)
        except ValueError:
            state[name] = None if text.startswith("[") else text
    bits = state.pop("clocks_throttle_reasons.active")
    state["driver_version"] = fields[0]
    state["throttled"] = [why for bit, why in THROTTLED.items() if int(bits or 0) & bit]
    return state


def after(device: torch.device) -> list[str]:
    """Notes about the state in which the measurements left the device; asked right after them."""
    state = gpu_state(device)
    if state is None or not state["throttled"]:
        return []
    clocks = f"{state['clocks.sm']:g} of {state['clocks.max.sm']:g} MHz"
    return [f"the GPU was throttled at the end ({', '.join(state['throttled'])}): {clocks}"]
