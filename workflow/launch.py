"""Starts `sf run` on the GPUs that the stage's resources request, one process per GPU.

    python -m workflow.launch sf run train --study mini …

With more than one GPU, a stage that can use them runs under torchrun; otherwise the command is
unchanged. With several nodes, which requires Slurm, each node runs its own torchrun, and they
connect through the first node. On a machine without a scheduler, the job first waits for free GPUs
(`workflow.devices`). The numbers are read from params.yaml when the job starts. They are not part
of the command, so changing them reruns nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sf.errors import SparsityForcingError
from sf.jobs import read_config
from sf.slurm_job import JOB
from workflow import devices, slurm, time_left
from workflow.jobs import jobs, launcher, load_params, resources_of


def main(words: list[str]) -> None:
    """Replace this process with the job."""
    assert words[:2] == ["sf", "run"], "usage: python -m workflow.launch sf run STAGE …"
    stage = words[2]
    params = load_params(Path("params.yaml"))
    values = read_config(Path(words[words.index("--config") + 1])) if "--config" in words else {}
    name, given = resources_of(stage, values, params)
    prefix = launcher(stage, given)
    if params.runtime.device == "cuda" and given.gpus and JOB not in os.environ:
        devices.claim(given.gpus, f"resources.{name}.gpus")
    here = slurm.node_of_step()
    if here is None and "--study" in words:  # a job of a study, not a stage that somebody tries
        print(time_left.sentence(params, jobs(params)), flush=True)
    if given.nodes > 1:
        if here is None:  # once on each node
            call = [sys.executable, "-m", "workflow.launch", *words]
            words = [*slurm.on_every_node(given, f"resources.{name}.nodes"), *call]
            os.execvp(words[0], words)
        prefix += [f"--node-rank={here.number}", f"--master-addr={here.first}"]
        prefix += [f"--master-port={here.port}"]
    if prefix:
        words = [sys.executable, *prefix, "-m", "sf.cli", *words[1:]]
    os.execvp(words[0], words)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SparsityForcingError as error:
        sys.exit(f"error: {error}")
