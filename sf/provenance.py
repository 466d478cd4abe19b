"""Provenance of a result: commit, versions, hardware. Its key is in `sf.result_key`."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "transformers", "trl", "lmms_eval", "accelerate", "datasets", "numpy", "av")


def commit() -> dict[str, Any]:
    """{"commit": hash or "unknown", "dirty": whether tracked files were changed}.

    Also "unknown" if this package is inside another repository.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT.resolve():
            return {"commit": "unknown", "dirty": None}
        head = _git("rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": None}


def _git(*words: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can affect numbers."""
    by_name = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            by_name[name] = "absent"
    return by_name


def hardware() -> dict[str, Any]:
    """Processor, cores and memory; a stage adds its accelerator if it uses one."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model, "cores": cores, "memory_gib": round(memory, 1)}
