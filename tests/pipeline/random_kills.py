"""Kills a study at random moments in every stage, restarts it, and compares its results.

    python tests/pipeline/random_kills.py --engine snakemake dvc slurm --kills 30

copies the checkout, runs the smoke study with one model once undisturbed, and once under each
engine with kills: SIGKILL or SIGTERM to every process of the engine and of its jobs, at the same
moment. After a kill, only the same command is given again. Under Slurm, which the script starts,
the jobs are killed with the submitter. The exit code is 1 if the score tables or weights differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import slurm_cluster
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from sf.attempts import last_attempt  # noqa: E402
from sf.layout import STAMP, work_folder  # noqa: E402
from workflow.jobs import jobs, load_params  # noqa: E402

BIN = Path(sys.executable).parent
ENGINES = {
    "snakemake": ["snakemake", "--cores", "2"],
    "dvc": ["dvc", "repro"],
    "slurm": ["snakemake", "--cores", "all", "--profile", "slurm",
              "--slurm-init-seconds-before-status-checks", "3"],
}  # fmt: skip
LONGEST_WAIT = 1500.0
LONGEST_END = 300.0
"""Most seconds until every process has ended after SIGTERM."""


@dataclass(frozen=True)
class Kill:
    """One kill of an engine and its jobs.

    Attributes:
        signal: its name.
        seconds: since the start of the job that was waited for.
        processes: number of killed processes; those of Slurm's jobs are not counted.
        outputs: of the jobs that were running.
    """

    signal: str
    seconds: float
    processes: int
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        where = ", ".join(self.outputs) or "between jobs"
        return f"{self.signal} {self.seconds:5.2f} s, {self.processes:2} processes: {where}"


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


def use_smoke(folder: Path) -> None:
    """Choose the smoke scale with one model, and bring `dvc.yaml` up to it."""
    _sf(folder, "use", "smoke", "--force")
    path, yaml = folder / "params.yaml", YAML()
    params = yaml.load(path.read_text())
    del params["base"]["tiny-qwen2-vl"]
    with path.open("w") as stream:
        yaml.dump(params, stream)
    _sf(folder, "plan")


def _sf(folder: Path, *words: str) -> None:
    call = [BIN / "sf", *words]
    subprocess.run(call, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)


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


def began(folder: Path, output: str) -> float:
    """When the last attempt at a job began; 0 before any."""
    attempt = last_attempt(work_folder(folder / output))
    return 0.0 if attempt is None else attempt.began


def kill_all(process: subprocess.Popen[bytes], number: signal.Signals, slurm: bool) -> int:
    """Send a signal to the engine and everything below it, and wait until all have ended.

    Returns:
        The number of processes.
    """
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    if number == signal.SIGKILL:  # none may continue while the others are killed
        _send(process, family, signal.SIGSTOP)
    _send(process, family, number)
    if slurm:
        words = ["scancel", f"--signal={number.name[3:]}", "--full", "--user", str(os.getuid())]
        subprocess.run(words, check=False)
    try:
        process.wait(LONGEST_END)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the engine ignores {number.name}") from None
    _, left = psutil.wait_procs(family, LONGEST_END)
    assert not left, f"{left} ignore {number.name}"
    return len(family)


def _send(
    process: subprocess.Popen[bytes], family: Sequence[psutil.Process], number: signal.Signals
) -> None:
    """Send a signal to the engine's process group at once, then to processes outside it."""
    os.killpg(process.pid, number)
    for one in family:
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(one.pid) != process.pid:
                one.send_signal(number)


def run_with_kills(
    folder: Path,
    command: Sequence[str],
    outputs: Sequence[str],
    longest: float,
    rng: random.Random,
    *,
    signals: Sequence[signal.Signals] = (signal.SIGKILL,),
    kills: int = 0,
) -> list[Kill]:
    """Run a study to its end, killed once during each of some jobs, in the order of their starts.

    A kill ends every running job, so it counts for all chosen jobs among them; a job may also end
    while its kill is due.

    Args:
        folder: the checkout.
        command: of the engine.
        outputs: of the jobs during which it is killed, as often as an output is listed.
        longest: most seconds of a job's work before a kill.
        rng: of the moments, signals and further jobs.
        signals: one is drawn for each kill.
        kills: choose further jobs, among those without a result, until there are so many kills.

    Raises:
        AssertionError: the study failed without a kill, or a process ignored a signal.
    """
    done: list[Kill] = []
    every, left = outputs_of(folder), list(outputs)
    while left:
        before = {output: began(folder, output) for output in every}
        with (folder / "engine.log").open("ab") as log:
            process = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                cwd=folder,
                env=environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        chosen = _first_begun(process, folder, {output: before[output] for output in left})
        if chosen is None:
            break
        delay = rng.uniform(0, longest)
        time.sleep(delay)
        if process.poll() is not None:
            break
        number = rng.choice(signals)
        running = tuple(output for output in every if _runs(folder, output, before[output]))
        count = kill_all(process, number, "--profile" in command)
        done.append(Kill(number.name, delay, count, running))
        print(f"{len(done):3} {done[-1]}", flush=True)
        for output in {chosen, *running} & set(left):
            left.remove(output)
        absent = [output for output in every if not (folder / output / STAMP).is_file()]
        left += drawn(folder, rng, kills - len(done) - len(left), among=absent)
    last = [str(BIN / command[0]), *command[1:]]
    ended = subprocess.run(last, cwd=folder, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-6000:]
    return done


def _runs(folder: Path, output: str, before: float) -> bool:
    """Whether a job began after an earlier attempt at `before` and has not ended."""
    attempt = last_attempt(work_folder(folder / output))
    return attempt is not None and attempt.began != before and attempt.ended is None


def _first_begun(
    process: subprocess.Popen[bytes], folder: Path, before: Mapping[str, float]
) -> str | None:
    """The first of some jobs that starts again; None if the engine ends first."""
    deadline = time.monotonic() + LONGEST_WAIT
    while process.poll() is None:
        for output, moment in before.items():
            if began(folder, output) != moment:
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


def weights(folder: Path) -> dict[str, str]:
    """The digest of each file with weights in the study's results, by path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for output in outputs_of(folder)
        for path in sorted((folder / output).rglob("*.safetensors"))
    }


def outputs_of(folder: Path) -> list[str]:
    """The output of each job of the study, in order."""
    return [job.output for job in jobs(load_params(folder / "params.yaml"))]


def one_per_stage(folder: Path) -> list[str]:
    """The output of the first job of each stage of `sf run`, in order."""
    specs = jobs(load_params(folder / "params.yaml"))
    first = {spec.stage.run: spec.output for spec in reversed(specs)}
    return [spec.output for spec in specs if spec.output in first.values()]


def drawn(folder: Path, rng: random.Random, number: int, among: Sequence[str]) -> list[str]:
    """Random outputs, with the same probability for each stage of `sf run`."""
    specs = [job for job in jobs(load_params(folder / "params.yaml")) if job.output in among]
    if number <= 0 or not specs:
        return []
    sizes = Counter(job.stage.run for job in specs)
    shares = [1 / sizes[job.stage.run] for job in specs]
    return [job.output for job in rng.choices(specs, shares, k=number)]


def differences(folder: Path, whole: Path) -> list[str]:
    """What two studies do not share, one sentence each: score tables and weights."""
    found = []
    ours, theirs = tables(folder), tables(whole)
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs or not ours[name].equals(theirs[name]):
            found.append(f"{name} differs")
    first, second = weights(folder), weights(whole)
    for name in sorted({*first, *second}):
        if first.get(name) != second.get(name):
            found.append(f"{name} differs")
    return found if theirs and second else [*found, "the undisturbed study has no results"]


def trial(engine: str, whole: Path, folder: Path, given: argparse.Namespace) -> list[str]:
    """Run the study with kills under an engine and print these; returns what went wrong."""
    print(f"{engine}, seed {given.seed}:", flush=True)
    rng = random.Random(given.seed)
    chosen = one_per_stage(folder)[: given.kills]
    chosen += drawn(folder, rng, given.kills - len(chosen), among=outputs_of(folder))
    signals = (signal.SIGKILL, signal.SIGTERM)
    starts = engine == "slurm"
    with slurm_cluster.slurm(folder.parent / "daemons") if starts else nullcontext():
        done = run_with_kills(
            *(folder, ENGINES[engine], chosen, given.longest, rng),
            signals=signals,
            kills=given.kills,
        )
    specs = {job.output: job.stage.run for job in jobs(load_params(folder / "params.yaml"))}
    counts = Counter(specs[output] for kill in done for output in kill.outputs)
    print("kills of each stage:", ", ".join(f"{stage} {n}" for stage, n in counts.items()))
    wrong = differences(folder, whole)
    if len(done) < given.kills:
        wrong.append(f"the study ended after {len(done)} kills; lower --longest")
    return wrong


def main() -> None:
    """Run the trials and print what was killed; exit code 1 after a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["snakemake"])
    parser.add_argument("--kills", type=int, default=30, help="under each engine")
    parser.add_argument("--longest", type=float, default=8.0, help="seconds of work before a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the studies; an undisturbed one is kept")
    given = parser.parse_args()
    if "slurm" in given.engine and (reason := slurm_cluster.missing()) is not None:
        parser.error(reason)
    place = given.folder or Path(tempfile.mkdtemp(prefix="random-kills-"))
    folders = {name: copy_checkout(place / name) for name in ("whole", *given.engine)}
    for folder in folders.values():
        use_smoke(folder)
    whole = folders.pop("whole")
    run_with_kills(whole, ENGINES["snakemake"], [], 0, random.Random(given.seed))
    wrong = []
    for engine, folder in folders.items():
        found = trial(engine, whole, folder, given)
        print("\n".join(found) or "same score tables and weights as without kills", flush=True)
        wrong += found
    if wrong:
        sys.exit(f"the studies are left in {place}")
    if given.folder is None:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
