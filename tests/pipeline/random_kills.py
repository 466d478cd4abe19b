"""A study whose processes are killed at random moments, in every stage, and started again.

    python tests/pipeline/random_kills.py --engine snakemake --kills 30

copies the checkout, runs the smoke study once undisturbed and once with kills (SIGKILL to every
process of the engine and of its jobs), and compares the tables of the two. Nothing is done between
a kill and the next start. Engines: snakemake, dvc, slurm (a Slurm must run, and jobs are killed
with the submitter).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
ENGINES = {
    "snakemake": ["snakemake", "--cores", "2"],
    "dvc": ["dvc", "repro"],
    "slurm": ["snakemake", "--cores", "all", "--profile", "slurm",
              "--slurm-init-seconds-before-status-checks", "3"],
}  # fmt: skip
LONGEST_WAIT = 1500.0


def copy_checkout(folder: Path) -> Path:
    """The files of the checkout as git would give them, at the smoke scale."""
    words = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def environment() -> dict[str, str]:
    """Variables with which the copy's code runs (PYTHONPATH), not the installed checkout's.

    Python may write bytecode, as for users; otherwise every job would compile `sf` again.
    """
    dropped = (
        *("MLFLOW_", "SNAKEMAKE_", "SLURM_", "HF_HUB_OFFLINE", "PYTEST_"),
        "PYTHONDONTWRITEBYTECODE",
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and k != "CI"}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": ".:imported", "OMP_NUM_THREADS": "1"}


def last_attempt(folder: Path, output: str) -> tuple[float, bool]:
    """When the last attempt at a job began (0 before any), and whether it ended by itself."""
    path = folder / Path(output).parent / f".{Path(output).name}.work" / "attempt.json"
    try:
        attempt = json.loads(path.read_text())
        return float(attempt["began"]), attempt["ended"] is not None
    except (OSError, ValueError):
        return 0.0, True


def kill_all(process: subprocess.Popen[bytes], slurm: bool) -> int:
    """SIGKILL to the engine and everything below it, at once; the number of processes."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:  # none may continue while the others are killed
        if member.is_running():
            member.send_signal(signal.SIGSTOP)
    for member in family:
        if member.is_running():
            member.send_signal(signal.SIGKILL)
    process.wait()
    if slurm:
        words = ["scancel", "--signal=KILL", "--full", "--user", str(os.getuid())]
        subprocess.run(words, check=False)
    return len(family)


def run_with_kills(
    folder: Path, command: Sequence[str], outputs: Sequence[str], longest: float, rng: random.Random
) -> list[str]:
    """Run a study to its end, killed once during each of some jobs, in the order of their starts.

    A kill ends every running job, so it counts for all chosen jobs among them.

    Args:
        folder: the checkout.
        command: of the engine.
        outputs: of the jobs during which it is killed, as often as an output is listed.
        longest: most seconds of a job's work before it is killed.
        rng: of the moments.

    Returns:
        One line per killed job; a job that ends while another one's kill is due has none.
    """
    lines = []
    left = list(outputs)
    while left:
        before = {output: last_attempt(folder, output)[0] for output in left}
        with (folder / "engine.log").open("ab") as log:
            process = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                cwd=folder,
                env=environment(),
                stdout=log,
                stderr=log,
            )
        chosen = _first_begun(process, folder, before)
        if chosen is None:
            break
        delay = rng.uniform(0, longest)
        time.sleep(delay)
        if process.poll() is not None:
            break
        count = kill_all(process, "--profile" in command)
        for output in before:
            began, ended = last_attempt(folder, output)
            if output == chosen or (began != before[output] and not ended):
                left.remove(output)
                lines.append(f"{output}: {count} processes after {delay:.2f} s")
    last = [str(BIN / command[0]), *command[1:]]
    done = subprocess.run(last, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return lines


def _first_begun(
    process: subprocess.Popen[bytes], folder: Path, before: Mapping[str, float]
) -> str | None:
    """The first of some jobs that starts again; None if the engine ends first."""
    deadline = time.monotonic() + LONGEST_WAIT
    while process.poll() is None:
        for output, moment in before.items():
            if last_attempt(folder, output)[0] != moment:
                return output
        assert time.monotonic() < deadline, f"none of {', '.join(before)} was begun"
        time.sleep(0.05)
    return None


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The report's score tables."""
    return {
        path.name: pd.read_csv(path)
        for path in sorted((folder / "reports/smoke/tables").glob("table*.csv"))
    }


def outputs_of(folder: Path) -> list[str]:
    """The output of each job of the study, in order."""
    from workflow.jobs import jobs, load_params

    return [job.output for job in jobs(load_params(folder / "params.yaml"))]


def main() -> None:
    """Run the trial and print a line per kill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, default="snakemake")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds of work before a kill")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = (copy_checkout(Path(place) / name) for name in ("whole", "killed"))
        for folder in (whole, killed):
            words = [BIN / "sf", "use", "smoke", "--force"]
            subprocess.run(words, cwd=folder, env=environment(), check=True)
        run_with_kills(whole, ENGINES["snakemake"], [], 0, rng)
        outputs = outputs_of(killed)
        more = max(given.kills - len(outputs), 0)
        chosen = outputs[: given.kills] + rng.choices(outputs, k=more)
        lines = run_with_kills(killed, ENGINES[given.engine], chosen, given.longest, rng)
        print("\n".join(lines))
        first, second = tables(whole), tables(killed)
        assert first.keys() == second.keys()
        assert first
        for name, table in first.items():
            pd.testing.assert_frame_equal(table, second[name])
        print(f"{len(lines)} kills under {given.engine}: the {len(first)} tables are the same")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
