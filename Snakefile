# The study under Snakemake. The stages, their order and what they read are in workflow/stages.py.
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from workflow.code_digests import code_digest
from workflow.jobs import jobs, read_params
from workflow.status import stale_jobs

PARAMS = read_params(Path("params.yaml"))
JOBS = jobs(PARAMS)
LOOKING = {"-n", "--dry-run", "--dryrun", "--lint", "--dag", "--rulegraph", "--summary", "--report"}
if workflow.is_main_process:
    for stale in stale_jobs(JOBS):
        print(f"does not hold: {stale.job.name}: {stale.changes[0]}", file=sys.stderr)
        if not LOOKING & set(sys.argv):
            Path(stale.job.stamp).unlink()

# `sf` is found beside the Python that runs Snakemake, also in jobs on other nodes.
shell.prefix(f"set -euo pipefail; export PATH={Path(sys.executable).parent}:$PATH; ")


rule all:
    input:
        [job.stamp for job in JOBS],
    default_target: True


for job in JOBS:
    given = PARAMS["resources"].get(job.stage.run, PARAMS["resources"]["default"])

    rule:
        name:
            job.name
        input:
            job.inputs,
        output:
            job.stamp,
        params:
            launch=job.stage.launch,
            cmd=job.command,
            code=code_digest(job.stage.run),
        log:
            f"logs/{PARAMS['scale']}/{job.name}.log",
        threads: given["cpus"]
        resources:
            mem_mb=given["mem_gib"] * 1024,
            runtime=int(given["hours"] * 60),
            gpu=given["gpus"],
        shell:
            "{params.launch} {params.cmd} 2>&1 | tee {log}"
