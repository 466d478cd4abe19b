"""Slurm support that Snakemake's executor plugin lacks.

The plugin identifies its jobs by a name that changes at every start. A restarted
submitter would therefore submit everything again while the first jobs still run:
`wait_for_jobs` finds them by their working directory and waits for them.
"""

from __future__ import annotations

import getpass
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.config import Resources
from sf.errors import ConfigError, EnvironmentFault
from sf.slurm_job import JOB, NODE_LIST, NODES, ask, complete_environment

__all__ = [
    *("Node", "QueuedJob", "check", "end_of", "grow", "jobs_of", "minutes", "node_of_step"),
    *("on_every_node", "requested", "wait_for_jobs"),
]

POLL_SECONDS = 5.0
LEAST_JOB_AGE = 120
"""Seconds that a finished job must stay visible to squeue: three of the plugin's status checks."""
_PORTS = range(15_000, 30_000)  # below the ephemeral ports
GROWTH = 0.5
"""Increase of memory and time per retry, as a share of the first attempt's."""


@dataclass(frozen=True)
class QueuedJob:
    """A running or pending Slurm job.

    Attributes:
        id: Slurm's id.
        state: "RUNNING", "PENDING", …
        rule: name of the study's job.
    """

    id: str
    state: str
    rule: str


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
