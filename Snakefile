# The study under Snakemake. workflow/stages.py defines the stages, their order and their inputs.
import shlex
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from sf.result_key.contents import digest_of
from workflow import slurm
from workflow.code_digests import code_digest
from workflow.jobs import jobs, load_params, resources_of, write_configs
from workflow.status import stale_jobs
from workflow.targets import asked_jobs, check_asked

PARAMS = load_params(Path("params.yaml"))
JOBS = jobs(PARAMS)
LOOKING = {"-n", "--dry-run", "--dryrun", "--lint", "--dag", "--rulegraph", "--summary", "--report"}
GROUPS = {}
ABSENT = set()
"""Stamps that a run would remove; a dry run uses names for them that do not exist."""


def stamps(paths):
    return [f"{path}.again" if path in ABSENT else path for path in paths]


if workflow.is_main_process:
    if config.get("cluster") == "slurm":
        GROUPS = slurm.group_sizes(sys.argv[1:])
        slurm.check_groups(GROUPS, JOBS, PARAMS)
    if config.get("cluster") == "slurm" and not LOOKING & set(sys.argv):
        slurm.check(sys.argv)
        slurm.wait_for_jobs(Path.cwd())
    for place in check_asked(sys.argv, PARAMS, JOBS):
        print(place, file=sys.stderr)
    write_configs(JOBS)
    for stale in stale_jobs(JOBS):
        print(f"stale: {stale.job.name}: {stale.changes[0]}", file=sys.stderr)
        if LOOKING & set(sys.argv):
            ABSENT.add(stale.job.stamp)
        else:
            Path(stale.job.stamp).unlink()

# `sf` is in the folder of the Python that runs Snakemake, also in jobs on other nodes.
BIN = shlex.quote(str(Path(sys.executable).parent)).replace("{", "{{").replace("}", "}}")
shell.prefix(f"set -euo pipefail; export PATH={BIN}:$PATH; ")


# Slurm jobs leave their metrics for MLflow in files (`sf.mlflow_store.is_left_to_submitter`).
onsuccess:
    from sf.cli.ending import ending  # imported here, because each job reads this file

    if config.get("cluster") == "slurm":
        shell("sf log")
    for job in JOBS:
        made = Path(job.output, "index.html").is_file()
        if job.stage.gather and made and not LOOKING & set(sys.argv):
            print(*ending(Path(job.output), PARAMS.scale), sep="\n", file=sys.stderr)


# The report is built from the existing results and lists the missing ones.
onerror:
    for job in JOBS:
        if job.stage.gather and not LOOKING & set(sys.argv):
            shell(job.command)
    if config.get("cluster") == "slurm":
        shell("sf log")


rule all:
    input:
        stamps(job.stamp for job in asked_jobs(PARAMS, JOBS)),
    default_target: True


for job in JOBS:
    _, given = resources_of(job.stage.run, job.parameters, PARAMS)

    rule:
        name:
            job.name
        localrule: job.stage.local
        group:
            job.stage.name if job.stage.name in GROUPS else None
        input:
            stamps(job.inputs),
        output:
            stamps([job.stamp]),
        params:
            launch=job.stage.launch,
            cmd=job.command,
            parameters=digest_of(job.parameters),
            code=code_digest(job.stage.run),
        log:
            f"logs/{PARAMS.scale}/{job.name}.log",
        threads: given.cpus
        resources:
            **slurm.requested(given),
        shell:  # the shell and tee outlive the signals that tell a stage to write its checkpoint
            "trap '' USR1 TERM; "
            "if [ -s {log} ]; then mv {log} {log}.$(date -r {log} +%Y%m%dT%H%M%S); fi; "
            "(trap - USR1 TERM; exec {params.launch} {params.cmd}) 2>&1 | tee {log}"
