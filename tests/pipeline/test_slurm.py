"""The documented command under a real Slurm: `snakemake --cores all --profile slurm`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster

from sf.errors import EnvironmentFault
from workflow import slurm

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
real = pytest.mark.slurm
SETTINGS = "MinJobAge = {age} sec\nAccountingStorageType = accounting_storage/{storage}\n"


def answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(slurm, "_output", lambda words: text)


def test_time_limits_are_rounded_up_and_never_absent() -> None:
    assert [slurm.minutes(hours) for hours in (0.01, 0.5, 1.01, 168)] == [1, 30, 61, 10080]


def test_memory_and_time_grow_on_retry() -> None:
    assert [slurm.grow(3072)(None, attempt) for attempt in (1, 2, 3)] == [3072, 4608, 6144]


@pytest.mark.parametrize(
    ("age", "storage", "arguments", "refused"),
    [
        (300, "none", [], False),
        (300, "slurmdbd", ["--slurm-status-command", "sacct"], False),
        (300, "none", ["--slurm-status-command=sacct"], True),
        (300, "none", ["--slurm-status-command", "sacct"], True),
        (60, "slurmdbd", [], False),
        (60, "none", [], True),
    ],
)
def test_a_study_that_would_wait_for_ever_is_refused(
    monkeypatch: pytest.MonkeyPatch, age: int, storage: str, arguments: list[str], refused: bool
) -> None:
    answers(monkeypatch, SETTINGS.format(age=age, storage=storage))
    if refused:
        with pytest.raises(EnvironmentFault, match="neither sacct nor squeue"):
            slurm.check(arguments)
    else:
        slurm.check(arguments)


def test_slurm_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentFault, match="not on PATH"):
        slurm.check([])


def test_only_jobs_of_this_checkout_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["1|RUNNING|rule_prepare|/a", "2|PENDING|rule_base__m|/b", "3|RUNNING|(null)|/a"]
    answers(monkeypatch, "\n".join(lines) + "\n")
    assert slurm.jobs_of(Path("/a")) == [slurm.QueuedJob("1", "RUNNING", "prepare")]


# Under a real Slurm


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    reason = slurm_cluster.missing()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm") / "checkout"
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for name in listed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    with slurm_cluster.slurm(folder.parent / "daemons"):
        subprocess.run(
            ["sf", "use", "smoke", "--force"], cwd=folder, env=environment(folder), check=True
        )
        yield folder


def environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE_", "SLURM_"))}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def submit(folder: Path, *targets: str) -> subprocess.Popen[str]:
    # Jobs of seconds: their end is looked for sooner than the plugin's 40 s.
    words = ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5", *targets]
    return subprocess.Popen(
        [BIN / "snakemake", "--cores", "all", "--profile", "slurm", *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def queue(*options: str) -> list[list[str]]:
    words = ["squeue", "--noheader", "--states=all", "--format", "%i|%T|%k|%C|%l", *options]
    return [line.split("|") for line in subprocess.check_output(words, text=True).splitlines()]


def wait_for(state: str, rule: str) -> str:
    """The id of the first job of a rule that is in a state."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for number, now, comment, *_ in queue():
            if (now, comment) == (state, f"rule_{rule}"):
                return number
        time.sleep(0.5)
    raise AssertionError(f"no {state} {rule}: {queue()}")


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-4000:]
    return output


@real
@pytest.mark.timeout(900)
def test_a_killed_submitter_waits_for_its_running_jobs(checkout: Path) -> None:
    first = submit(checkout, "benchmarks")
    wait_for("RUNNING", "benchmarks")
    os.killpg(first.pid, signal.SIGKILL)
    output = end(submit(checkout, "benchmarks"))
    assert "waiting for benchmarks, Slurm job" in output
    assert [line[2] for line in queue()] == ["rule_benchmarks"]
    assert (checkout / "results/smoke/benchmarks/stage.json").is_file()


@real
@pytest.mark.timeout(900)
def test_a_job_gets_the_cores_it_asks_for_and_goes_on_after_scancel(checkout: Path) -> None:
    """More cores than the submitting machine has; a cancelled job is tried again."""
    params = checkout / "params.yaml"
    params.write_text(params.read_text().replace("  default: {cpus: 1,", "  default: {cpus: 7,"))
    process = submit(checkout, "prepare")
    cancelled = wait_for("RUNNING", "prepare")
    subprocess.run(["scancel", cancelled], check=True)
    end(process)
    tries = [line for line in queue() if line[2] == "rule_prepare"]
    assert len(tries) == 2
    assert {line[3] for line in tries} == {"7"}
    assert (checkout / "results/smoke/prepare/stage.json").is_file()


@real
@pytest.mark.timeout(900)
def test_a_drained_node_delays_a_study_and_does_not_fail_it(checkout: Path) -> None:
    import socket

    node = f"NodeName={socket.gethostname().split('.')[0]}"
    drain = ["scontrol", "update", node, "State=DRAIN", "Reason=test"]
    subprocess.run(drain, check=True)
    process = submit(checkout, "base__tiny-qwen2.5-vl")
    try:
        wait_for("PENDING", "base__tiny-qwen2.5-vl")
    finally:
        subprocess.run(["scontrol", "update", node, "State=RESUME"], check=True)
    end(process)
    assert (checkout / "results/smoke/base/tiny-qwen2.5-vl/stage.json").is_file()
