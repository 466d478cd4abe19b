"""The measured device, and whether it was busy with other work."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

import psutil
import torch

from sf.errors import EnvironmentFault
from sf.profiling.roofline import Ceilings
from sf.provenance import commit, hardware, versions

__all__ = [
    "after",
    "describe",
    "gpu_state",
    "held_back",
    "pace",
    "read_state",
    "require_device",
    "state_under_load",
]

BUSY_LOAD = 0.5  # load average per core above which a CPU is reported as busy
BUSY_GPU = 20  # utilisation in percent above which a GPU is reported as busy
CONTEXT_GIB = 1.5  # allowance for this process's CUDA context, outside torch's allocator
QUERY = (
    *("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu"),
    *("power.draw", "utilization.gpu"),
)
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer, older drivers
PACE = 0.1  # relative change of the ceilings above which the speed counts as unstable
# NVML's bits for throttling; idling and configured clocks are excluded.
THROTTLED = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


def require_device(name: str) -> torch.device:
    """The requested device.

    Raises:
        EnvironmentFault: a GPU is requested but not available; a CPU does not replace it.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            "device",
            name,
            "was requested, but torch finds no CUDA device",
            "run on a GPU machine, or set runtime.device to cpu",
        )
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, commit and other load, as JSON-able content.

    Call it before the measurements: its notes describe the state of the machine.
    """
    facts: dict[str, Any] = {
        "device": device.type,
        "host": hardware(),
        "versions": versions(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        **commit(),
        "notes": [],
    }
    if device.type == "cuda":
        facts["gpu"] = _gpu(device)
        state = gpu_state(device)
        facts["gpu"]["state"] = state
        if state is not None and (state["utilization.gpu"] or 0) > BUSY_GPU:
            share = state["utilization.gpu"]
            facts["notes"].append(f"the GPU was busy: {share:g} % before the first measurement")
        used = facts["gpu"]["used_besides_gib"]
        if used > CONTEXT_GIB:
            facts["notes"].append(f"the GPU was shared: {used:.1f} GiB used by other processes")
    else:
        load, cores = psutil.getloadavg()[0], facts["host"]["cores"]
        facts["load_average"] = load
        frequency = psutil.cpu_freq()
        facts["cpu_mhz"] = None if frequency is None else round(frequency.current)
        if load / cores > BUSY_LOAD:
            facts["notes"].append(f"the CPU was busy: load average {load:.1f} on {cores} cores")
    return facts


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "memory_gib": round(total / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "used_besides_gib": round((total - free - torch.cuda.memory_reserved(device)) / 2**30, 2),
    }


def gpu_state(device: torch.device) -> dict[str, Any] | None:
    """Current driver, clocks, temperature, power and load of a GPU; None without nvidia-smi."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    uuid = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    for reasons in REASONS:
        asked = ",".join([*QUERY, reasons])
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(
                [*command, "-i", uuid], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return read_state(done.stdout)
    return None


def read_state(line: str) -> dict[str, Any] | None:
    """Parse a line of nvidia-smi's reply to `QUERY` and reasons; unknown values are None."""
    fields = [field.strip() for field in line.strip().splitlines()[0].split(",")] if line else []
    if len(fields) != len(QUERY) + 1:
        return None
    state: dict[str, Any] = {name: _number(text) for name, text in zip(QUERY, fields, strict=False)}
    bits = _number(fields[-1])
    state["driver_version"] = fields[0]
    state["throttled"] = [why for bit, why in THROTTLED.items() if int(bits or 0) & bit]
    return state


def _number(text: str) -> float | None:
    try:
        return float(int(text, 16)) if text.startswith("0x") else float(text)
    except ValueError:
        return None


def after(device: torch.device) -> list[str]:
    """Notes about the device's state at the end; call it immediately after the measurements."""
    return held_back(state_under_load(device))


def state_under_load(device: torch.device) -> dict[str, Any] | None:
    """`gpu_state` during matrix products; an idle GPU lowers its clocks at once."""
    if device.type == "cuda":
        _load(device)
    return gpu_state(device)


def held_back(state: dict[str, Any] | None) -> list[str]:
    """A note if a GPU under load was throttled by power or temperature."""
    if state is None or not state["throttled"]:
        return []
    clocks = [state[name] for name in ("clocks.sm", "clocks.max.sm")]
    shown = "" if None in clocks else f": {clocks[0]:g} of {clocks[1]:g} MHz"
    reasons = ", ".join(state["throttled"])
    return [f"the GPU was throttled under load at the end ({reasons}){shown}"]


def _load(device: torch.device) -> None:
    """Queue matrix products that take one or two seconds on an H200, without waiting for them."""
    try:
        left = torch.ones(8192, 8192, dtype=torch.bfloat16, device=device)
        out = torch.empty_like(left)
    except torch.OutOfMemoryError:
        return  # not enough memory: the state without load is used
    for _ in range(900):
        torch.mm(left, left, out=out)


def pace(before: Ceilings, later: Ceilings) -> list[str]:
    """A note if the device's speed changed between start and end, by throttling or sharing.

    Args:
        before, later: the ceilings measured at the start and at the end of the run.
    """
    products, copies = later.flops / before.flops, later.bytes / before.bytes
    if max(abs(products - 1), abs(copies - 1)) <= PACE:
        return []
    return [
        f"the device's speed changed: at the end, products ran at {100 * products:.0f} % and "
        f"copies at {100 * copies:.0f} % of the initial rate"
    ]
