"""A process's information on its Slurm job.

Snakemake's executor plugin removes most of Slurm's variables before it starts a job, and older
versions of Slurm set no end time. A job would then not know its time limit, its number of requeues
or its nodes.
"""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ["END", "JOB", "NODES", "NODE_LIST", "RESTARTS", "complete_environment"]

JOB = "SLURM_JOB_ID"
END = "SLURM_JOB_END_TIME"
RESTARTS = "SLURM_RESTART_COUNT"
NODES = "SLURM_JOB_NUM_NODES"
NODE_LIST = "SLURM_JOB_NODELIST"
_FIELDS = {END: "EndTime", RESTARTS: "Restarts", NODES: "NumNodes", NODE_LIST: "NodeList"}
"""The fields of `scontrol show job` with their values."""


def complete_environment() -> None:
    """Set the variables of this module from Slurm's record of the job; no effect outside Slurm.

    If Slurm does not answer, the process keeps the variables it has, and a warning is printed.
    """
    job = os.environ.get(JOB)
    if job is None:
        return
    words = ["scontrol", "--oneliner", "show", "job", job]
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=60, env=environment
        )
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()
        text = f"the time limit of Slurm job {job} is unknown: `{' '.join(words)}`: {reason}"
        print(text, file=sys.stderr, flush=True)
        return
    fields = dict(word.partition("=")[::2] for word in done.stdout.split())
    os.environ |= {name: fields[field] for name, field in _FIELDS.items() if field in fields}
