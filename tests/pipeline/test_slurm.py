"""The documented command under a real Slurm: `snakemake --cores all --profile slurm`.

Two nodes, no accounting, more CPUs than the machine has. One study of one job goes through what
happens on clusters, as the start of Snakemake takes most of the time.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import slurm_cluster
from random_kills import copy_checkout, environment
from test_launch import job, params, study, weights
from test_slurm_requests import PROFILE, uncommented

from sf.attempts import last_attempt
from sf.layout import work_folder
from sf.training.checkpoints import SEAL
from workflow import slurm

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent

AS_THE_PLUGIN = r"unset $(env | sed -n 's/^\(SLURM_[A-Z_]*\)=.*/\1/p' | grep -v '^SLURM_JOB_ID$')"
"""Removes what Snakemake's executor plugin removes from the environment of an MPI job."""

AT_ONCE = "StartTime=now+3"
"""A job that starts in the second of its requeue fails: its credential is revoked."""

LIMITED = """# A stage that its first job has no time for.
import os, sys, time
from pathlib import Path
from types import ModuleType
import sf.cli, sf.jobs
from sf.fields import Section

class Parameters(Section):
    output: Path

def run(parameters, job):
    with (job.state / "calls").open("a") as calls:
        print(os.environ["SLURM_JOB_ID"], file=calls)
    if os.environ["SLURM_RESTART_COUNT"] == "0":
        time.sleep(600)
    (job.out / "calls").write_text((job.state / "calls").read_text())

for name in [n for n in os.environ if n.startswith("SLURM_") and n != "SLURM_JOB_ID"]:
    del os.environ[name]  # as Snakemake's executor plugin does
module = ModuleType("limited")
module.Parameters, module.run, module.__file__ = Parameters, run, sf.jobs.__file__
module.input_paths = lambda parameters: {}
sf.jobs.stage_module = lambda name: module
sf.cli.main()
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout at the smoke scale in a path with a space, and a running Slurm."""
    reason = slurm_cluster.missing()
    if reason is not None:
        pytest.skip(reason)
    folder = copy_checkout(tmp_path_factory.mktemp("slurm") / "check out")
    use = [BIN / "sf", "use", "smoke", "--force"]
    subprocess.run(use, cwd=folder, env=environment(), check=True)
    with slurm_cluster.slurm(folder.parent / "daemons"):
        yield folder


def submit(folder: Path, *targets: str) -> subprocess.Popen[str]:
    # Jobs of seconds: their end is looked for sooner than the plugin's 40 s.
    words = ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5", *targets]
    return subprocess.Popen(
        [BIN / "snakemake", "--cores", "all", "--profile", "slurm", *words],
        cwd=folder,
        env=environment(),
        stdout=(folder / "submitter.log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def sbatch(folder: Path, *words: str) -> str:
    """Submit a script of one line; returns the job's id."""
    call = ["sbatch", "--parsable", "--requeue", "--chdir", str(folder), *words]
    return subprocess.check_output(call, env=environment(), text=True).strip()


def queue(*options: str) -> list[list[str]]:
    words = ["squeue", "--noheader", "--states=all", "--format", "%i|%T|%k|%C|%m", *options]
    return [line.split("|") for line in subprocess.check_output(words, text=True).splitlines()]


def wait_for(state: str, rule: str, other_than: str = "") -> str:
    """The id of a job of a rule that is in a state."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        for number, now, comment, *_ in queue():
            if (now, comment) == (state, f"rule_{rule}") and number != other_than:
                return number
        time.sleep(0.5)
    raise AssertionError(f"no {state} {rule}: {queue()}")


def nodes(state: str) -> None:
    name = f"NodeName={','.join(slurm_cluster.NODES)}"
    subprocess.run(["scontrol", "update", name, f"State={state}", "Reason=test"], check=True)


@pytest.mark.slurm
@pytest.mark.timeout(2700)
def test_a_study_survives_what_happens_on_a_cluster(checkout: Path) -> None:
    """A killed submitter's job, drained nodes, a job cancelled, a job at its time limit."""
    params = checkout / "params.yaml"
    text = params.read_text()
    assert "  default: {cpus: 1," in text
    params.write_text(text.replace("  default: {cpus: 1,", "  default: {cpus: 7,"))
    limited = checkout.parent / "limited.py"
    limited.write_text(LIMITED)
    (checkout / "limited.json").write_text(json.dumps({"output": "results/own/limited"}))
    call = shlex.join(
        [str(BIN / "python"), str(limited), "run", "report", "--config", "limited.json"]
    )
    told = sbatch(checkout, "--output", "limited.log", "--time", "2", "--wrap", call)
    wait_until(lambda: state(told) == "RUNNING")
    nodes("DRAIN")
    left = sbatch(checkout, "--comment", "rule_benchmarks", "--wrap", "sleep 600")
    assert slurm.jobs_of(checkout)[-1] == slurm.QueuedJob(left, "PENDING", "benchmarks")
    process = submit(checkout, "benchmarks")
    try:
        wait_until(
            lambda: f"Slurm job {left} of an earlier call" in read(checkout / "submitter.log")
        )
        subprocess.run(["scancel", left], check=True)
        waiting = wait_for("PENDING", "benchmarks", other_than=left)  # the nodes are drained
    finally:
        nodes("RESUME")
    wait_for("RUNNING", "benchmarks")
    subprocess.run(["scancel", waiting], check=True)
    assert process.wait(timeout=1200) == 0, read(checkout / "submitter.log")[-4000:]
    # The job left its figures to the submitter, as nodes do not share a sqlite store.
    assert " results logged to mlflow.db" in read(checkout / "submitter.log")
    tries = [line for line in queue() if line[2] == "rule_benchmarks" and line[0] != left]
    assert len(tries) == 2
    assert {line[3] for line in tries} == {"7"}  # the machine has fewer
    assert sorted(line[4] for line in tries) == ["2G", "3G"]
    assert (checkout / "results/smoke/benchmarks/stage.json").is_file()

    wait_until(lambda: "Slurm starts it again" in read(checkout / "limited.log"))
    subprocess.run(["scontrol", "update", f"JobId={told}", AT_ONCE], check=False)
    result = checkout / "results/own/limited/calls"
    wait_until(result.is_file)
    assert set(result.read_text().split()) == {told}
    assert "report: done" in read(checkout / "limited.log")


@pytest.mark.slurm
@pytest.mark.timeout(1200)
def test_short_jobs_share_a_slurm_job(checkout: Path) -> None:
    """One after another, with the CPUs and the memory of one job and the time of all."""
    profile = checkout / "slurm/profile.yaml"
    grouped = uncommented(PROFILE).partition("default-resources:")[0]
    profile.write_text(grouped)
    params = checkout / "params.yaml"
    text = params.read_text()
    params.write_text(re.sub(r"suites: \[all\]", "suites: [mme, mmstar]", text))
    before = len(queue())
    targets = ["previews__mme", "previews__mmstar"]
    process = submit(checkout, *targets)
    try:
        assert process.wait(timeout=1100) == 0, read(checkout / "submitter.log")[-4000:]
    finally:
        profile.write_text(PROFILE)
        params.write_text(text)
    jobs_now = sorted(queue(), key=lambda line: int(line[0]))[before:]
    assert len(jobs_now) == 2, (jobs_now, read(checkout / "submitter.log")[-6000:])
    alone, group = jobs_now
    assert (alone[2], group[2]) == ("rule_benchmarks", f"rule_previews_{'_'.join(targets)}")
    assert group[3:5] == alone[3:5]
    limits = [
        subprocess.check_output(
            ["squeue", "--noheader", "--states=all", "--jobs", job[0], "--format=%l"], text=True
        ).strip()
        for job in (alone, group)
    ]
    assert limits == ["30:00", "1:00:00"]
    outputs = [checkout / f"results/smoke/previews/{suite}" for suite in ("mme", "mmstar")]
    attempts = [last_attempt(work_folder(output)) for output in outputs]
    first, second = sorted(filter(None, attempts), key=lambda attempt: attempt.began)
    assert first.outcome == second.outcome == "done"
    assert first.ended is not None
    assert first.ended <= second.began


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_a_training_over_two_nodes_survives_a_rank_and_a_node(
    checkout: Path, tmp_path: Path
) -> None:
    """One rank a node, over gloo: the same weights as without kills."""
    given = params(0)
    given["train"] |= {"steps": 8}
    given["resources"]["train"]["nodes"] = 2
    whole, killed = (study(tmp_path / name, given) for name in ("whole", "killed"))
    spec = job(given)
    call = f"{AS_THE_PLUGIN}; {shlex.quote(sys.executable)} -m workflow.launch {spec.command}"
    words = ("--nodes=2", "--ntasks=2", f"--export=ALL,PYTHONPATH={ROOT}", "--output", "log")
    words = (*words, "--open-mode=append", "--wrap", call)
    ended(sbatch(whole, *words), "COMPLETED", whole)

    seal = work_folder(killed / spec.output) / "state" / "checkpoints"
    first = sbatch(killed, *words)
    wait_until(lambda: (seal / "checkpoint-2" / SEAL).is_file())
    victim = next(p for p in ranks(first) if p.environ()["RANK"] == "1")
    assert {p.environ()["SLURM_NODEID"] for p in ranks(first)} == {"0", "1"}
    victim.kill()
    ended(first, "FAILED", killed)
    wait_until(lambda: not ranks(first), seconds=60)
    assert not (killed / spec.output).exists()

    second = sbatch(killed, *words)
    wait_until(lambda: (seal / "checkpoint-4" / SEAL).is_file())
    lost = [p for p in ranks(second) if p.environ()["SLURM_NODEID"] == "1"]
    slurm_cluster.kill_node("n2")
    for process in lost:
        process.kill()
    wait_until(lambda: state(second) == "PENDING")  # its node is down: back into the queue
    slurm_cluster.start_node("n2")
    subprocess.run(["scontrol", "update", f"JobId={second}", AT_ONCE], check=False)
    ended(second, "COMPLETED", killed)
    assert weights(killed, spec) == weights(whole, spec)


def state(number: str) -> str:
    return next(line[1] for line in queue("--jobs", number))


def ended(number: str, how: str, folder: Path) -> None:
    """Wait for the end of a job, which must be this one."""
    wait_until(lambda: state(number) in ("COMPLETED", "FAILED", "CANCELLED"))
    assert state(number) == how, read(folder / "log")[-4000:]


def ranks(number: str) -> list[psutil.Process]:
    """The processes of a job that torchrun has started."""
    chosen = []
    for process in psutil.process_iter():
        try:
            values = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if values.get("SLURM_JOB_ID") == number and "TORCHELASTIC_RUN_ID" in values:
            chosen.append(process)
    return chosen


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def wait_until(holds: Callable[[], bool], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)
