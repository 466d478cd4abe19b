"""The commands of a study: stages, parameters, status and logging."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sf import ranks
from sf.cli.ending import ending
from sf.cli.output import stdout

__all__ = [
    *("log_command", "plan_command", "rehearse_command"),
    *("run_command", "status_command", "use_command"),
]


def _stages() -> list[str]:
    from sf.jobs import STAGES

    return list(STAGES)


def _scales() -> list[str]:
    from sf.scales import scale_names

    return scale_names()


def run_command(
    context: typer.Context,
    stage: Annotated[
        str | None, typer.Argument(help="prepare, base, train, evaluate, …", autocompletion=_stages)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="override a parameter; may be repeated"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON file with the job's parameters, instead of params.yaml"),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="the study that the MLflow run belongs to")
    ] = None,
    show_help: Annotated[
        bool, typer.Option("--help", help="show this message and every parameter of the stage")
    ] = False,
) -> None:
    """Run one stage with the parameters of params.yaml or of a file; reuse finished results."""
    if stage is None or show_help:
        _run_help(context, stage)
        return
    from sf.jobs import read_config, run_stage
    from sf.mlflow_store import is_left_to_submitter

    words = list(changes or [])
    if config is None:
        from workflow.one_job import asked_job

        values, name = asked_job(stage, words)
    else:
        values, name = read_config(config), "own"
        if words:
            from workflow.one_job import own_output

            values = own_output(stage, config.stem, values, words)
    name = study or name
    command = ["sf", "run", stage, "--study", name]
    command += ["--config", str(config)] if config is not None else []
    command += [part for word in words for part in ("--set", word)]
    tracked = not is_left_to_submitter()
    outcome = run_stage(stage, values, name, shlex.join(command), tracked=tracked)
    if ranks.rank() == 0:
        where = f", in {values['output']}" if words else ""
        stdout.print(escape(f"{stage}: {outcome}{where}"))
        if stage == "report" and name != "own" and tracked:
            for line in ending(Path(values["output"]), name):
                stdout.print(escape(line))


def _run_help(context: typer.Context, stage: str | None) -> None:
    """Print the options of `sf run` and all parameters of a stage."""
    stdout.print(context.get_help())
    if stage is None:
        return
    from workflow.parameter_help import as_table, described

    rows, job = described(stage)
    stdout.print(as_table(rows))
    origin = f"values and sources are those of params.yaml, job {job}" if job else "defaults"
    stdout.print(escape(f"{len(rows)} parameters of {stage}; {origin}"))


def use_command(
    scale: Annotated[
        str,
        typer.Argument(
            help="smoke, mini, compare, tables, single_gpu, paper, or another file in params/",
            autocompletion=_scales,
        ),
    ],
    force: Annotated[bool, typer.Option(help="overwrite an edited params.yaml")] = False,
) -> None:
    """Write params.yaml from the defaults and a scale's changes; print the differences."""
    from sf.config import load_params
    from sf.scales import use_scale
    from workflow.dvc_yaml import write_dvc_yaml

    changes = use_scale(scale, force)
    write_dvc_yaml(load_params(Path("params.yaml")))
    table = Table()
    for title in ("parameter", "before", "now"):
        table.add_column(title, overflow="fold")  # do not truncate on a narrow terminal
    for name, before, now in changes:
        table.add_row(name, str(before), str(now))
    if changes:
        stdout.print(table)
    stdout.print(f"params.yaml is now the scale {scale!r}: {len(changes)} values changed")


def status_command(
    as_json: Annotated[bool, typer.Option("--json", help="JSON output for programs")] = False,
) -> None:
    """Show the status of each job of params.yaml's study and the hours of work left."""
    from workflow import status
    from workflow.jobs import jobs, load_params

    listed = status.study_status(jobs(load_params(Path("params.yaml"))))
    if as_json:
        stdout.print_json(data=status.as_json(listed))
        return
    stdout.print(status.as_table(listed))
    stdout.print(status.totals(listed))


def rehearse_command(
    scale: Annotated[
        str | None,
        typer.Argument(help="by default the study in params.yaml", autocompletion=_scales),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write the result to this file")
    ] = None,
    gpu_gib: Annotated[float, typer.Option(help="memory of each GPU")] = 79.0,
    disk_gib: Annotated[float | None, typer.Option(help="free disk space for the results")] = None,
    seconds_a_step: Annotated[
        float | None,
        typer.Option(help="seconds per training step; by default from the published time"),
    ] = None,
    peak: Annotated[
        bool,
        typer.Option(
            help="also the peak memory of training steps and batches of answers; takes minutes"
        ),
    ] = False,
) -> None:
    """Estimate the cost of a study and list what would fail, before anything runs."""
    from sf.atomic_files import write_json
    from workflow import rehearsal

    options = rehearsal.Options(gpu_gib, disk_gib, seconds_a_step, peak)
    seen = rehearsal.rehearse(scale, options)
    for part in rehearsal.shown(seen):
        stdout.print(escape(part) if isinstance(part, str) else part)
    if json_file is not None:
        write_json(json_file, rehearsal.as_json(seen))
    raise typer.Exit(1 if seen.faults else 0)


def plan_command(
    target: Annotated[str, typer.Argument(help="table1 to table8, figure4a, …, or all")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="JSON output for programs")] = False,
) -> None:
    """List the jobs that a table of the paper needs, existing results and remaining cost."""
    from workflow import plan
    from workflow.dvc_yaml import write_dvc_yaml
    from workflow.jobs import load_params

    params = load_params(Path("params.yaml"))
    made = plan.plan(target, params)
    if as_json:
        stdout.print_json(data=plan.as_json(made))
        return
    stdout.print(plan.as_table(made))
    for sentence in plan.sentences(made):
        stdout.print(escape(sentence))
    if made.to_make:
        write_dvc_yaml(params)  # it names a table only if params.yaml has its rows
        by_dvc = "dvc repro" if target == "all" else f"dvc repro {target}"
        if params.tables and target not in ("all", *params.tables):
            by_dvc += " once tables in params.yaml names it"
        stdout.print(escape(f"to make it: snakemake --cores all {target}, or {by_dvc}"))


def log_command() -> None:
    """Log every finished result that is not yet in the MLflow store."""
    from sf.mlflow_store import store_name
    from sf.tracking import log_all

    count = log_all(Path("results"), Path("reports"))
    stdout.print(f"{count} results logged to {escape(store_name())}")
    for study in sorted(path.name for path in Path("results").glob("*") if path.name != "own"):
        _show_address(study)


def _show_address(study: str) -> None:
    """Print the URL of a study's tables in MLflow; warn if the store does not respond."""
    from sf.mlflow_store import best_effort, client_of_store
    from sf.mlflow_study import study_address

    with best_effort("a question"):
        stdout.print(f"study {escape(study)}: {study_address(client_of_store(), study)}")
