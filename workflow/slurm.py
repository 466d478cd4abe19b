"""Slurm support that Snakemake's executor plugin lacks.

The plugin identifies its jobs by a name that changes at every start. A restarted
submitter would therefore submit everything again while the first jobs still run:
`wait_for_jobs` finds them by their working directory and waits for them.
"""

from __future__ import annotations

import getpass
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.config import Params, Resources
from sf.errors import ConfigError, EnvironmentFault
from sf.slurm_job import JOB, NODE_LIST, NODES, ask, complete_environment

if TYPE_CHECKING:
    from workflow.jobs import JobSpec

__all__ = [
    *("Node", "QueuedJob", "check", "check_groups", "end_of", "group_sizes", "grow", "jobs_of"),
    *("minutes", "node_of_step", "on_every_node", "requested", "wait_for_jobs"),
]

POLL_SECONDS = 5.0
LEAST_JOB_AGE = 120
"""Seconds that a finished job must stay visible to squeue: three of the plugin's status checks."""
_MORE = "..."
_LISTED = 5
"""Most jobs that Snakemake lists in the name of a group."""
_LONGEST_NAME = 255
"""Bytes of a file name; the plugin names a folder after each group."""
_PORTS = range(15_000, 30_000)  # below the ephemeral ports
GROWTH = 0.5
"""Increase of memory and time per retry, as a share of the first attempt's."""


@dataclass(frozen=True)
class QueuedJob:
    """A running or pending Slurm job.

    Attributes:
        id: Slurm's id.
        state: "RUNNING", "PENDING", …
        rule: name of the study's job, or of a group of jobs of one stage: the stage and at most
            five jobs in alphabetical order, and "..." if there are more, joined by "_".
    """

    id: str
    state: str
    rule: str

    def may_contain(self, name: str, stage: str, names: Iterable[str]) -> bool:
        """Whether it is a group with a job, or may be one because its rule omits some names.

        Args:
            name: of the job.
            stage: of the job.
            names: of all jobs of the stage.
        """
        left = self.rule.removeprefix(f"{stage}_")
        if left == self.rule:
            return False
        last = ""
        longest_first = sorted(names, key=len, reverse=True)
        while left and left != _MORE:
            last = next((n for n in longest_first if f"{left}_".startswith(f"{n}_")), "")
            if last in ("", name):
                return last == name
            left = left[len(last) + 1 :]
        return left == _MORE and name > last


@dataclass(frozen=True)
class Node:
    """One of a job's nodes, as seen from that node.

    Attributes:
        number: of this node, from 0.
        first: address of the first node, to which the job's processes connect.
        port: for these connections; the same on every node, and different between jobs.
    """

    number: int
    first: str
    port: int


_FIRST = "SF_FIRST_NODE"
"""Set only for the steps that `on_every_node` starts."""


def requested(given: Resources) -> dict[str, Any]:
    """The resources of a job under the names of Snakemake and its executor plugin."""
    wanted = {
        "mem_mb": grow(given.mem_gib * 1024),
        "runtime": grow(minutes(given.hours)),
        "gpu": given.all_gpus,
        "nodes": given.nodes,
        "cpus_per_task": given.cpus,  # `threads` is cut to the submitting machine's cores
        "slot": 1,  # the profile gives each Slurm job one: the jobs of a group run in turn
    }
    if given.nodes > 1:
        # For the plugin this is an MPI job, which starts its own steps, one per node. With `tasks`
        # alone, the plugin would request this number of tasks per GPU.
        wanted |= {"mpi": "srun", "tasks": given.nodes, "tasks_per_gpu": 0}
    return wanted


def on_every_node(given: Resources, field: str) -> list[str]:
    """The command prefix that starts a command once on every node of this job.

    If it fails on one node, it ends on all.

    Args:
        given: nodes and CPUs of the job.
        field: name of the parameter that requests the nodes, for the message.

    Raises:
        ConfigError: this is not a Slurm job with that number of nodes.
    """
    complete_environment()
    has = int(os.environ.get(NODES, "0"))
    if has != given.nodes:
        what = f"a Slurm job with {has}" if has else "not a Slurm job"
        remedy = "start it with `snakemake --profile slurm`, or set it to 1"
        raise ConfigError(field, given.nodes, f"needs that many nodes, but this is {what}", remedy)
    hosts = ask(["scontrol", "show", "hostnames", os.environ[NODE_LIST]])
    node = ask(["scontrol", "--oneliner", "show", "node", hosts.split()[0]])
    first = node.partition("NodeAddr=")[2].split()[0]
    return [
        *("srun", f"--nodes={has}", f"--ntasks={has}", "--ntasks-per-node=1"),
        *(f"--cpus-per-task={given.cpus}", "--kill-on-bad-exit=1", "--label"),
        *("env", f"{_FIRST}={first}"),
    ]


def node_of_step() -> Node | None:
    """The node on which `on_every_node` started this process; None if it did not."""
    first = os.environ.get(_FIRST)
    if first is None:
        return None
    job = int(os.environ[JOB])
    return Node(int(os.environ["SLURM_NODEID"]), first, _PORTS.start + job % len(_PORTS))


def minutes(hours: float) -> int:
    """A time limit in Slurm's whole minutes, rounded up, because 0 would mean no limit."""
    return max(1, math.ceil(hours * 60))


def grow(first: int) -> Callable[..., int]:
    """A Snakemake resource that grows by half of the request with every retry of a job."""

    def amount(wildcards: object, attempt: int) -> int:
        return math.ceil(first * (1 + GROWTH * (attempt - 1)))

    return amount


def check(arguments: Sequence[str]) -> None:
    """Refuse to submit if the plugin could never detect the end of a job.

    The profile uses squeue. If finished jobs leave squeue too early, the plugin uses sacct
    instead, which returns nothing without accounting.

    Args:
        arguments: Snakemake's command line.

    Raises:
        EnvironmentFault: sacct is needed but Slurm keeps no accounts, or Slurm does not
            respond.
    """
    settings = {
        name.strip(): value.strip()
        for name, _, value in (
            line.partition("=") for line in ask(["scontrol", "show", "config"]).splitlines()
        )
    }
    age = settings.get("MinJobAge", "").split()
    brief = not age or not age[0].isdigit() or int(age[0]) < LEAST_JOB_AGE
    asks_sacct = brief or _value(arguments, "--slurm-status-command") == "sacct"
    storage = settings.get("AccountingStorageType", "").removeprefix("accounting_storage/")
    if asks_sacct and storage in ("none", "(null)", ""):
        raise EnvironmentFault(
            "Slurm",
            f"AccountingStorageType={storage}, MinJobAge={' '.join(age)}",
            "neither sacct nor squeue can report that a job has ended",
            "have accounting enabled or MinJobAge raised to 300, and omit "
            "--slurm-status-command sacct",
        )


def group_sizes(arguments: Sequence[str]) -> dict[str, int]:
    """The most jobs of a stage in one Slurm job: `group-components` of the profile or command line.

    Snakemake tells a workflow only after it has read the Snakefile.

    Args:
        arguments: Snakemake's command line, without its name.
    """
    from snakemake.cli import parse_args

    with redirect_stderr(io.StringIO()):  # names the profiles again
        _, given = parse_args(list(arguments))
    return dict(given.group_components)


def check_groups(sizes: Mapping[str, int], specs: Iterable[JobSpec], params: Params) -> None:
    """Refuse groups of jobs that could not be submitted.

    Args:
        sizes: Snakemake's `group-components`: stage -> most jobs in one Slurm job.
        specs: all jobs of the study.
        params: of the study.

    Raises:
        ConfigError: a name is no stage of the study, or the stage's jobs cannot be grouped.
    """
    names: dict[str, list[str]] = {}
    stages = {job.stage.name: job.stage for job in specs}
    for job in specs:
        names.setdefault(job.stage.name, []).append(job.name)
    for name, size in sizes.items():
        field = f"group-components.{name}"
        if name not in names:
            remedy = f"choose among: {', '.join(names)}"
            raise ConfigError(field, size, "is no stage of this study", remedy)
        if stages[name].local:
            rule = "is of a stage that runs where the study is started"
            raise ConfigError(field, size, rule, "remove it")
        if params.resources_of(stages[name].run)[1].nodes > 1:
            raise ConfigError(field, size, "is of a stage that runs on several nodes", "remove it")
        members = sorted(names[name], key=len)[-size:]
        listed = [*members[-_LISTED:], *([_MORE] if len(members) > _LISTED else [])]
        folder = "_".join(["group", name, *listed])
        if len(folder.encode()) > _LONGEST_NAME:
            rule = f"gives groups names of up to {len(folder.encode())} bytes"
            raise ConfigError(field, size, f"{rule}, and {_LONGEST_NAME} are possible", "lower it")


def _value(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option given as two words or as one."""
    for index, word in enumerate(arguments):
        if word == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def jobs_of(folder: Path) -> list[QueuedJob]:
    """This user's running and pending Slurm jobs of a checkout.

    Args:
        folder: the checkout, the jobs' working directory.

    Raises:
        EnvironmentFault: Slurm does not answer.
    """
    columns = "%i|%T|%k|%Z"  # id, state, comment, working directory
    words = ["squeue", "--noheader", "--user", getpass.getuser(), "--format", columns]
    queued = []
    for line in ask(words).splitlines():
        number, state, comment, place = line.split("|", 3)
        rule = comment.removeprefix("rule_")
        if rule != comment and Path(place) == folder:
            queued.append(QueuedJob(number, state, rule))
    return queued


def end_of(job: str) -> str | None:
    """A job's final state in Slurm's queue or accounts, such as "TIMEOUT"; None if unknown."""
    for words in (
        ["squeue", "--noheader", "--states=all", "--jobs", job, "--format", "%T"],
        ["sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job, "--format", "State"],
    ):
        try:
            lines = ask(words).splitlines()
        except EnvironmentFault:  # the job is too old, or there are no accounts
            continue
        if lines and lines[-1].strip():
            return lines[-1].strip()
    return None


def wait_for_jobs(folder: Path) -> None:
    """Wait until Slurm has no job of this checkout, so that none is submitted twice."""
    shown: set[str] = set()
    while queued := jobs_of(folder):
        for job in queued:
            if job.id not in shown:
                print(
                    f"waiting for {job.rule}, Slurm job {job.id} of an earlier call "
                    f"({job.state}); `scancel {job.id}` ends it",
                    file=sys.stderr,
                    flush=True,
                )
        shown |= {job.id for job in queued}
        time.sleep(POLL_SECONDS)
