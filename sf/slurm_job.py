"""A process's information on its Slurm job.

Snakemake's executor plugin removes most of Slurm's variables before it starts a job, and older
versions of Slurm set no end time. A job would then not know its time limit, its number of requeues
or its nodes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from sf.errors import EnvironmentFault

__all__ = ["END", "JOB", "NODES", "NODE_LIST", "RESTARTS", "ask", "complete_environment"]

JOB = "SLURM_JOB_ID"
END = "SLURM_JOB_END_TIME"
RESTARTS = "SLURM_RESTART_COUNT"
NODES = "SLURM_JOB_NUM_NODES"
NODE_LIST = "SLURM_JOB_NODELIST"
_FIELDS = {END: "EndTime", RESTARTS: "Restarts", NODES: "NumNodes", NODE_LIST: "NodeList"}
"""The fields of `scontrol show job` with their values."""


def ask(words: Sequence[str], **variables: str) -> str:
    """The output of one of Slurm's commands.

    Args:
        words: the command.
        **variables: added to its environment.

    Raises:
        EnvironmentFault: the command is missing, fails or takes longer than a minute.
    """
    environment = os.environ | variables
    try:
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=60, env=environment
        )
    except FileNotFoundError:
        rule, remedy = "is not on PATH", "submit from a login node of the cluster"
        raise EnvironmentFault("Slurm", words[0], rule, remedy) from None
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()
        raise EnvironmentFault(
            "Slurm", words[0], f"does not answer: {reason}", "try again when Slurm responds"
        ) from None
    return done.stdout


def complete_environment() -> None:
    """Set the variables of this module from Slurm's record of the job; no effect outside Slurm.

    If Slurm does not answer, the process keeps the variables it has, and a warning is printed.
    """
    job = os.environ.get(JOB)
    if job is None:
        return
    try:
        record = ask(["scontrol", "--oneliner", "show", "job", job], SLURM_TIME_FORMAT="%s")
    except EnvironmentFault as error:
        print(f"the time limit of this job is unknown: {error}", file=sys.stderr, flush=True)
        return
    fields = dict(word.partition("=")[::2] for word in record.split())
    os.environ |= {name: fields[field] for name, field in _FIELDS.items() if field in fields}
