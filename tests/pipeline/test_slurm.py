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
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import slurm_cluster
from random_kills import copy_checkout, environment
from ruamel.yaml import YAML
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from test_launch import job, params, study, weights

from sf.attempts import last_attempt
from sf.config import Params, Resources
from sf.errors import ConfigError, EnvironmentFault
from sf.layout import work_folder
from sf.scales import scale_values
from sf.training.checkpoints import SEAL
from sf.validation import validated
from workflow import slurm
from workflow.jobs import jobs

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
real = pytest.mark.slurm
SETTINGS = "MinJobAge = {age} sec\nAccountingStorageType = accounting_storage/{storage}\n"


def answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(slurm, "ask", lambda words: text)


def test_time_limits_are_rounded_up_and_never_absent() -> None:
    assert [slurm.minutes(hours) for hours in (0.01, 0.5, 1.01, 168)] == [1, 30, 61, 10080]


class Asked(dict[str, object]):
    """A job's resources as the plugin reads them."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize(
    ("changes", "words", "absent"),
    [
        ({}, "--nodes=1 --ntasks=1 --cpus-per-task=12", "--gpus"),
        ({"gpus": 8}, "--nodes=1 --cpus-per-task=12 --gpus=8", "--ntasks"),
        ({"nodes": 2}, "--nodes=2 --ntasks=2 --cpus-per-task=12", "--gpus"),
        ({"nodes": 2, "gpus": 8}, "--nodes=2 --ntasks=2 --cpus-per-task=12 --gpus=16",
         "--ntasks-per-gpu"),
    ],
)  # fmt: skip
def test_slurm_is_asked_for_a_task_a_node(changes: dict[str, int], words: str, absent: str) -> None:
    given = {"cpus": 12, "mem_gib": 4, "gpus": 0, "hours": 1, **changes}
    asked = Asked(slurm.requested(validated(Resources, given)))
    asked |= {name: asked[name](None, 1) for name in ("mem_mb", "runtime")}  # type: ignore[operator]
    job = SimpleNamespace(resources=asked, threads=2)
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    command = get_submit_command(job, dict.fromkeys(names, "x")) + set_gres_string(job)
    assert set(words.split()) <= set(command.split())
    assert absent not in command
    assert "--mem 4096" in command


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


PROFILE = (ROOT / "slurm/profile.yaml").read_text()


def uncommented(profile: str) -> str:
    return re.sub("(?m)^# (?= |def|group)", "", profile)


def test_what_a_cluster_wants_is_uncommented_in_one_place() -> None:
    """Each commented line of the profile is a setting that the Slurm plugin or Snakemake knows."""
    before, after = (YAML(typ="safe").load(text) for text in (PROFILE, uncommented(PROFILE)))
    given = after.pop("default-resources")
    assert after.pop("group-components") == {"previews": 8}
    assert after == before
    assert set(given) == {"slurm_account", "slurm_partition", "qos", "gpu_model", "slurm_extra"}
    plugin = find_spec("snakemake_executor_plugin_slurm")
    assert plugin is not None
    assert plugin.origin is not None
    source = "".join(path.read_text() for path in Path(plugin.origin).parent.glob("*.py"))
    for name in given:
        assert re.search(rf"[\"'.]{name}\b", source), name


def test_groups_come_from_the_profile_and_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/profile.yaml").write_text(uncommented(PROFILE))
    monkeypatch.chdir(tmp_path)
    words = ["--cores", "all", "--profile", "slurm", "previews__mme"]
    assert slurm.group_sizes(words) == {"previews": 8}
    assert slurm.group_sizes([*words, "--group-components", "table=3"]) == {"table": 3}
    assert capsys.readouterr() == ("", "")
    (tmp_path / "slurm/profile.yaml").write_text(PROFILE)
    assert slurm.group_sizes(words) == {}


def test_a_job_is_found_in_the_group_that_has_it() -> None:
    names = [f"previews__{suite}" for suite in ("a", "a_b", "b", "c", "d", "e", "f")]

    def of(rule: str) -> list[str]:
        queued = slurm.QueuedJob("1", "PENDING", rule)
        return [name for name in names if queued.may_contain(name, "previews", names)]

    assert of("previews_previews__a_b_previews__c") == ["previews__a_b", "previews__c"]
    assert of("previews_previews__a") == ["previews__a"]
    # Snakemake lists the first five by name: what comes later may be in the group.
    listed = "_".join(["previews", *names[:5], "..."])
    assert of(listed) == names
    assert of(listed.replace("previews__a_previews__a_b_", "previews__a_")) == [
        *("previews__a", "previews__b", "previews__c", "previews__d", "previews__e", "previews__f")
    ]
    for other in ("previews__a", "table_table1_table2", "evaluate_base_previews__a"):
        assert of(other) == []


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"previews": 14}, None),
        ({"previews": 2, "preview": 2}, "group-components.preview = 2. is no stage of this study"),
        ({"fetch_rows": 2}, "runs where the study is started"),
        ({"train": 2}, "runs on several nodes"),
        ({"evaluate_base": 5}, "names of up to 3.. bytes, and 255 are possible"),
        ({"evaluate_base": 3}, None),
    ],
)
def test_only_what_can_be_grouped_is(sizes: dict[str, int], problem: str | None) -> None:
    given = scale_values("paper")
    given["resources"]["train"]["nodes"] = 2
    study_params = validated(Params, given)
    specs = jobs(study_params)
    if problem is None:
        slurm.check_groups(sizes, specs, study_params)
    else:
        with pytest.raises(ConfigError, match=problem):
            slurm.check_groups(sizes, specs, study_params)


# Under a real Slurm

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


@real
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


@real
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


@real
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
