"""Starts `sf run` on the GPUs that the stage's resources ask for, a process each.

    python -m workflow.launch sf run train --study mini …

With more than one GPU the command of a stage that can use them runs under torchrun on this machine,
else as it is. On a machine without a scheduler the job first waits for free GPUs
(`workflow.devices`). The number is read from params.yaml when the job starts: it is no part of the
command, so changing it reruns nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sf.errors import SparsityForcingError
from workflow import devices
from workflow.jobs import launcher, load_params


def main(words: list[str]) -> None:
    """Replace this process by the job."""
    assert words[:2] == ["sf", "run"], "usage: python -m workflow.launch sf run STAGE …"
    stage = words[2]
    params = load_params(Path("params.yaml"))
    name, given = params.resources_of(stage)
    gpus, prefix = given.gpus, launcher(stage, given.gpus)
    if params.runtime.device == "cuda" and gpus and "SLURM_JOB_ID" not in os.environ:
        devices.claim(gpus, f"resources.{name}.gpus")
    if prefix:
        words = [sys.executable, *prefix, "-m", "sf.cli", *words[1:]]
    os.execvp(words[0], words)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SparsityForcingError as error:
        sys.exit(f"error: {error}")
