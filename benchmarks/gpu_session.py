"""All GPU measurements, the most important first, for a machine that is available only for minutes.

    python benchmarks/gpu_session.py                   # or `make gpu`: at most eight minutes
    python benchmarks/gpu_session.py --only attention --again
    python benchmarks/gpu_session.py --carry           # no device: figures into README and report
    python benchmarks/gpu_session.py --rehearse        # the same code on a CPU, tiny, in a minute

Each section has its own time limit and its own process; rows are on disk after each step. An
interrupted section loses only the step that was running. A second call continues with the remaining
steps. Rows go to `reports/measured/DEVICE/gpu_session.json`, each with device, driver, clocks under
load, versions and commit, and from there into README's table and the report's figures 4c and 4d.

It requires Python with PyTorch (CUDA and Triton), transformers and psutil, installs nothing, and
runs without pydantic, TRL, datasets and flash-attn: steps that need one of them are skipped, with
the reason.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from gpu_sections.scale import Scale

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "reports" / "measured"
SECONDS = 480  # of a whole call
LEAST_SECONDS = 5  # below which no section is started
NEW_PROCESS = 3  # exit code: the device's context is lost, the next step needs another process
TRIES = 4


class Section(NamedTuple):
    """A part of a session.

    Attributes:
        name: for `--only`.
        seconds: its limit.
        module: of `gpu_sections`.
        function: returns its steps.
    """

    name: str
    seconds: float
    module: str
    function: str = "steps"


SECTIONS = (
    Section("device", 20, "device"),
    Section("tests", 90, "kernel_tests"),
    Section("attention", 60, "attention"),
    Section("attention without cuDNN", 30, "attention", "without_plans"),
    Section("tiles", 30, "tiles"),
    Section("decode tiles", 75, "tiles", "decode_steps"),
    Section("model", 60, "model"),
    Section("decode profile", 25, "model", "profile_steps"),
    Section("top-p", 35, "prefill", "top_p_steps"),
    Section("prefill", 75, "prefill"),
    Section("training", 120, "training"),
    Section("predicted memory", 45, "training", "predicted_steps"),
    Section("rollouts", 45, "model", "engine_steps"),
    Section("throughput", 60, "model", "throughput_steps"),
)
Steps = dict[str, Callable[[], list[Any]]]


def steps_of(section: Section, scale: Scale, folder: Path) -> Steps:
    """The steps of a section by name, without running them."""
    from importlib import import_module

    function = getattr(import_module(f"gpu_sections.{section.module}"), section.function)
    steps: Steps = function(scale, folder) if section.name == "tests" else function(scale)
    return steps


def work(section: Section, todo: list[str], scale: Scale, folder: Path, parent: int) -> None:
    """The process of a section: measure the steps one by one."""
    from contextlib import nullcontext

    import torch
    from gpu_sections.journal import Journal
    from gpu_sections.measure import Skipped

    from sf.attention.backends import using_backend
    from sf.attention.backends.cuda import CudaBackend
    from sf.profiling.clock_watch import ClockWatch
    from sf.profiling.hardware import describe

    journal, steps = Journal(folder), steps_of(section, scale, folder)
    facts = constant(describe(scale.at), scale)
    torch.manual_seed(0)
    # A rehearsal runs the device's own code, through Triton's interpreter.
    backend = using_backend(CudaBackend()) if scale.rehearsal else nullcontext()
    with ClockWatch(scale.at) as clocks, torch.inference_mode(), backend:
        for name in todo:
            if os.getppid() != parent:
                os._exit(1)  # the session was killed: nobody waits for more
            began = time.monotonic()
            journal.begin(section.name, name)
            try:
                rows = steps[name]()
            except Skipped as reason:
                journal.note(section.name, name, "skipped", str(reason))
                say(f"{section.name}: {name}: skipped: {reason}")
                continue
            except Exception as error:  # noqa: BLE001  (the next step may do without what failed)
                journal.note(section.name, name, "failed", f"{type(error).__name__}: {error}")
                traceback.print_exc()
                say(f"{section.name}: {name}: failed: {error!r}"[:1000])
                if "CUDA error" in str(error) or isinstance(error, torch.AcceleratorError):
                    os._exit(NEW_PROCESS)
                continue
            now = {
                **facts,
                "clocks": clocks.since(began),
                "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            seconds = time.monotonic() - began
            journal.add(section.name, name, rows, now, seconds)
            for row in rows:
                print(row, flush=True)
            say(f"{section.name}: {name}: {seconds:.1f} s")


def constant(described: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """What every row of a process states about its device."""
    import torch

    gpu = described.get("gpu", {})
    state = gpu.get("state") or {}
    versions = {name: v for name, v in described["versions"].items() if v != "absent"}
    versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    from importlib import metadata

    try:
        versions["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        versions["triton"] = "absent"
    return {
        "device": gpu.get("name", described["host"]["cpu"]),
        "memory_gib": gpu.get("memory_gib", described["host"]["memory_gib"]),
        "driver": state.get("driver_version"),
        "versions": versions,
        "commit": os.environ.get("SF_COMMIT") or described["commit"],
        "dirty": described["dirty"],
        "notes": described["notes"],
        "shape": scale.shape,
        "rehearsal": scale.rehearsal,
    }


def say(words: str) -> None:
    """Print progress on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {words}", file=sys.stderr, flush=True)


def device_name(pipe: Any) -> None:
    """Send the device's name through a pipe, from a child: the parent must not use the device."""
    import torch

    pipe.send(torch.cuda.get_device_name(0) if torch.cuda.is_available() else None)


def folder_of(scale: Scale) -> Path:
    """The folder for the rows of this machine's device.

    Raises:
        SystemExit: there is none.
    """
    if scale.rehearsal:
        return MEASURED / "local" / "rehearsal"
    receiver, sender = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=device_name, args=(sender,))
    process.start()
    name = receiver.recv()
    process.join()
    if name is None:
        sys.exit("gpu_session.py: no CUDA device is visible to PyTorch; run it on a GPU machine")
    return MEASURED / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_section(section: Section, scale: Scale, folder: Path, seconds: float, again: bool) -> None:
    """Run the remaining steps, in a new process after each lost context."""
    from gpu_sections.journal import Journal

    journal, until = Journal(folder), time.monotonic() + seconds
    todo = [
        name
        for name in steps_of(section, scale, folder)
        if again or not journal.is_done(section.name, name)
    ]
    for _ in range(TRIES):
        left, began = until - time.monotonic(), time.time()
        if not todo or left <= 0:
            return
        process = get_context("fork").Process(
            target=work, args=(section, todo, scale, folder, os.getpid())
        )
        process.start()
        process.join(left)
        if process.is_alive():
            process.terminate()
            process.join(3)
            process.kill()
            process.join()
            journal.cut(section.name, f"the section's {seconds:.0f} s were over")
            unfinished = [name for name in todo if not journal.is_done(section.name, name)]
            say(f"{section.name}: cut after {seconds:.0f} s, left: {', '.join(unfinished)}")
            return
        if process.exitcode == 0:
            return
        # A crash takes its step along; what comes after it gets a new process.
        reason = f"its process ended with {process.exitcode}"
        for step in journal.cut(section.name, reason):
            say(f"{section.name}: {step}: {reason}")
        todo = [name for name in todo if not journal.tried_since(section.name, name, began)]


def session(scale: Scale, folder: Path, seconds: float, only: list[str], again: bool) -> None:
    """Run every section in turn until the time is up."""
    until = time.monotonic() + seconds * scale.patience
    for section in SECTIONS:
        if only and section.name not in only:
            continue
        left = min(section.seconds * scale.patience, until - time.monotonic())
        if left < LEAST_SECONDS:
            say(f"{section.name}: not begun, {max(left, 0):.0f} s left; call again")
            continue
        run_section(section, scale, folder, left, again)


def main() -> None:
    """Measure what is left, then update README and the report's data."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    names = [section.name for section in SECTIONS]
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of this call")
    parser.add_argument("--only", action="append", default=[], choices=names, help="a section")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--output", type=Path, help="in place of reports/measured/DEVICE")
    parser.add_argument("--carry", action="store_true", help="no device: only carry the figures")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU; its times mean nothing")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # this checkout's `sf`, installed or not
    from gpu_sections import figures

    if arguments.carry:
        figures.carry(ROOT)
        return
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import sf  # noqa: F401  (before transformers)

    # isort: split
    from gpu_sections.scale import FULL, REHEARSAL

    scale = REHEARSAL if arguments.rehearse else FULL
    folder = arguments.output or folder_of(scale)
    say(f"rows go to {folder}")
    session(scale, folder, arguments.seconds, arguments.only, arguments.again)
    if not arguments.rehearse and arguments.output is None:
        figures.carry(ROOT)


if __name__ == "__main__":
    main()
