"""The command line: `sf run`, `sf use`, `sf status`, `sf log` and what the other parts add."""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import sf
from sf import own_commands, ranks
from sf.errors import ConfigError, EnvironmentFault, SparsityForcingError
from sf.escaping import printable
from sf.extras import extra_of, missing
from sf.interruption import LIMIT, STATUS, JobInterrupted, requeue
from sf.redaction import RedactedStream, redact

app = typer.Typer(
    help="Sparsity Forcing: multimodal LLMs that need fewer tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_stdout = Console(soft_wrap=True)
_PLAIN = warnings.formatwarning
_USER_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def _stages() -> list[str]:
    from sf.jobs import STAGES

    return list(STAGES)


def _scales() -> list[str]:
    from sf.scales import scale_names

    return scale_names()


def _methods() -> list[str]:
    from sf.baselines import METHODS

    return list(METHODS)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sf {sf.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print it and stop"),
    ] = False,
) -> None:
    """Sparsity Forcing: multimodal LLMs that need fewer tokens."""


@app.command("run", add_help_option=False)
def run_command(
    context: typer.Context,
    stage: Annotated[
        str | None, typer.Argument(help="prepare, base, train, evaluate, …", autocompletion=_stages)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="another value of a parameter; repeat it"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON file with the job's parameters, in place of params.yaml"),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="the study that the MLflow run belongs to")
    ] = None,
    show_help: Annotated[
        bool, typer.Option("--help", help="show this, and every parameter of the stage")
    ] = False,
) -> None:
    """Run one stage with the parameters of params.yaml or of a file; finished work is adopted."""
    if stage is None or show_help:
        _run_help(context, stage)
        return
    from sf.jobs import read_config, run_stage

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
    outcome = run_stage(stage, values, name, shlex.join(command))
    if ranks.rank() == 0:
        where = f", in {values['output']}" if words else ""
        _stdout.print(escape(f"{stage}: {outcome}{where}"))
        if stage == "report" and name != "own":
            _show_address(name)


def _run_help(context: typer.Context, stage: str | None) -> None:
    """The options of `sf run`, and of a stage all parameters."""
    _stdout.print(context.get_help())
    if stage is None:
        return
    from workflow.parameter_help import as_table, described

    rows, job = described(stage)
    _stdout.print(as_table(rows))
    origin = f"values and sources are those of params.yaml, job {job}" if job else "defaults"
    _stdout.print(escape(f"{len(rows)} parameters of {stage}; {origin}"))


@app.command("use")
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
    """Write params.yaml from the defaults and a scale's changes; print what changed."""
    from sf.config import load_params
    from sf.scales import use_scale
    from workflow.dvc_yaml import write_dvc_yaml

    changes = use_scale(scale, force)
    write_dvc_yaml(load_params(Path("params.yaml")))
    table = Table()
    for title in ("parameter", "before", "now"):
        table.add_column(title, overflow="fold")  # nothing is cut where the terminal is narrow
    for name, before, now in changes:
        table.add_row(name, str(before), str(now))
    if changes:
        _stdout.print(table)
    _stdout.print(f"params.yaml is now the scale {scale!r}: {len(changes)} values changed")


@app.command("status")
def status_command(
    as_json: Annotated[bool, typer.Option("--json", help="plain values for programs")] = False,
) -> None:
    """Say of each job of params.yaml's study whether its result holds, runs, waits or failed."""
    from workflow import status
    from workflow.jobs import jobs, load_params

    listed = status.study_status(jobs(load_params(Path("params.yaml"))))
    if as_json:
        _stdout.print_json(data=status.as_json(listed))
        return
    _stdout.print(status.as_table(listed))
    _stdout.print(status.totals(listed))


@app.command("plan")
def plan_command(
    target: Annotated[str, typer.Argument(help="table1 to table8, figure4a, …, or all")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="plain values for programs")] = False,
) -> None:
    """Say which jobs a table of the paper needs, what is already made and what the rest costs."""
    from workflow import plan
    from workflow.dvc_yaml import write_dvc_yaml
    from workflow.jobs import load_params

    params = load_params(Path("params.yaml"))
    made = plan.plan(target, params)
    if as_json:
        _stdout.print_json(data=plan.as_json(made))
        return
    _stdout.print(plan.as_table(made))
    for sentence in plan.sentences(made):
        _stdout.print(escape(sentence))
    if made.to_make:
        write_dvc_yaml(params)  # it names a table only where params.yaml has its rows
        by_dvc = "dvc repro" if target == "all" else f"dvc repro {target}"
        if params.tables and target not in ("all", *params.tables):
            by_dvc += " once tables in params.yaml names it"
        _stdout.print(escape(f"to make it: snakemake --cores all {target}, or {by_dvc}"))


@app.command("ask")
def ask_command(
    model: Annotated[str, typer.Option(help="a checkpoint's folder, or OWNER/NAME on the hub")],
    question: Annotated[str, typer.Option(help="put to the model as it stands")],
    image: Annotated[Path | None, typer.Option(help="an image file")] = None,
    video: Annotated[Path | None, typer.Option(help="or a video file")] = None,
    p: Annotated[float | None, typer.Option(help="retention threshold in (0, 1]")] = None,
    token_ratio: Annotated[
        float | None, typer.Option(help="share of the tokens to keep; p is the checkpoint's own")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="full attention")] = False,
    revision: Annotated[str | None, typer.Option(help="of a hub id")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="length limit of the reply")] = 128,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; a GPU where there is one")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 (default on a CPU), bfloat16 or float16")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="of the image, or of each frame")] = None,
    max_frames: Annotated[int, typer.Option(help="of a video")] = 32,
    fps: Annotated[float, typer.Option(help="frames looked at a second")] = 2.0,
    picture: Annotated[
        Path | None, typer.Option(help="of the kept tokens; ./MEDIA.kept.png if not given")
    ] = None,
) -> None:
    """Answer one question about an image or a video and show which tokens were kept."""
    from sf.ask import ask, choose_policy
    from sf.ask.text import render

    media = image or video
    place = picture or Path(f"{media.stem if media else 'media'}.kept.png")
    result = ask(
        model,
        question,
        image=image,
        video=video,
        policy=choose_policy(p, full, token_ratio),
        revision=revision,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        max_pixels=max_pixels,
        max_frames=max_frames,
        fps=fps,
        picture=place,
    )
    _stdout.print(render(result, _stdout))
    _stdout.print(f"kept tokens drawn in {escape(str(place))}")


@app.command("curve")
def curve_command(
    model: Annotated[
        Path, typer.Argument(help="a checkpoint's folder; the curve is written there")
    ],
    manifest: Annotated[
        Path, typer.Option(help="rows to measure on: calibration.parquet of `sf run prepare`")
    ],
    batch: Annotated[int, typer.Option(help="prompts in a forward at most")] = 8,
) -> None:
    """Measure a checkpoint's token ratio over p, for --token-ratio; bounds as in params.yaml."""
    from sf.config import load_params
    from sf.data.manifest import read_manifest
    from sf.training.ratio_curve import CurveRequest, measure_ratio_curve

    params, rows = load_params(Path("params.yaml")), read_manifest(manifest)
    template = params.answering.prompt_template
    request = CurveRequest(rows, params.vision, params.runtime, template, batch)
    table = Table("p", "token ratio")
    for p, ratio in measure_ratio_curve(model, request):
        table.add_row(f"{p:g}", f"{100 * ratio:.1f} %")
    _stdout.print(table)


app.command("evaluate")(own_commands.evaluate_command)
app.command("train")(own_commands.train_command)
app.command("serve")(own_commands.serve_command)


@app.command("profile")
def profile_command(
    model: Annotated[
        str, typer.Argument(help="a checkpoint's folder or hub id, or a shape: qwen2.5-vl-7b, …")
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="as trained by default; top_k for random weights", autocompletion=_methods
        ),
    ] = None,
    value: Annotated[float | None, typer.Option(help="of the method's hyperparameter")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="keep a recorded layers.csv's shares; --value: which p")
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="prompt tokens; repeat it")] = None,
    batch: Annotated[int, typer.Option(help="rows")] = 1,
    repeats: Annotated[int, typer.Option(help="6 is the fewest for 95 % intervals")] = 6,
    decode_tokens: Annotated[int, typer.Option(help="after the first")] = 32,
    prompts: Annotated[str, typer.Option(help="text (random) or video (drawn)")] = "text",
    video: Annotated[Path | None, typer.Option(help="a file for --prompts video")] = None,
    fit: Annotated[bool, typer.Option(help="search largest batch and longest prompt")] = False,
    fit_gib: Annotated[float, typer.Option(help="memory limit of that search on a CPU")] = 0.0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; a GPU where there is one")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 on a CPU, else bfloat16")] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder; results/own/profile/MODEL if not given")
    ] = None,
) -> None:
    """Measure latency, memory and decoding of a method beside full attention."""
    from sf.ask import pick_runtime
    from sf.profiling.command import Request, run, sentences, table

    if prompts not in ("text", "video"):
        raise ConfigError("prompts", prompts, "must be text or video")
    runtime = pick_runtime(device, dtype)
    folder = output or Path("results/own/profile") / Path(model).name
    found = run(
        Request(
            model=model,
            method=method,
            value=value,
            replay=replay,
            lengths=tuple(length or (1024, 4096, 16384)),
            batch=batch,
            repeats=repeats,
            decode_tokens=decode_tokens,
            prompts="video" if prompts == "video" else "text",
            video=video,
            fit=fit,
            fit_gib=fit_gib,
            device=runtime.device,
            dtype=runtime.dtype,
            output=folder,
        )
    )
    _stdout.print(table(found))
    for sentence in sentences(found):
        _stdout.print(escape(sentence))
    _stdout.print(f"tables and pictures are in {escape(str(folder))}")


@app.command("log")
def log_command() -> None:
    """Log every finished result that the MLflow store does not hold yet."""
    from sf.mlflow_store import store_name
    from sf.tracking import log_all

    count = log_all(Path("results"), Path("reports"))
    _stdout.print(f"{count} results logged to {escape(store_name())}")
    for study in sorted(path.name for path in Path("results").glob("*") if path.name != "own"):
        _show_address(study)


def _show_address(study: str) -> None:
    """Where MLflow shows a study's tables; a store that does not answer is warned of."""
    from sf.mlflow_store import best_effort, client_of_store
    from sf.mlflow_study import study_address

    with best_effort("a question"):
        _stdout.print(f"study {escape(study)}: {study_address(client_of_store(), study)}")


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """This package's own warnings without the line of code that gave them."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parent):
        return printable(redact(f"warning: {message}")) + "\n"
    return printable(redact(_PLAIN(message, category, filename, lineno, line)))


def main() -> None:
    """Run the command line; errors that a user can cause are one line and exit status 2.

    Nothing that any library prints shows a secret of the environment, and no traceback an escape
    sequence of a terminal.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an engine's shell may have it ignored
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    warnings.formatwarning = _one_line
    try:
        sys.argv[1:] = own_commands.separated(sys.argv[1:])
        app()
    except SparsityForcingError as error:
        _stop(error)
    except JobInterrupted as interruption:
        again = interruption.cause == LIMIT and requeue(interruption.progress)
        print(f"{interruption}{': Slurm starts it again' if again else ''}", file=sys.stderr)
        sys.exit(STATUS)
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            _crash()
        _stop(_as_fault(error))
    except ModuleNotFoundError as error:
        name = extra_of(error.name or "")
        if name is None:
            _crash()
        _stop(missing(error.name or "", name))
    except Exception:  # noqa: BLE001 - shown in full, and the process ends
        _crash()


def _as_fault(error: OSError) -> EnvironmentFault:
    place = error.filename2 or error.filename
    rule = f"cannot be written or read: {error.strerror}"
    remedy = "work in a folder of your own, on a file system with room that may be written"
    return EnvironmentFault("file", None if place is None else str(place), rule, remedy)


def _crash() -> NoReturn:
    """End with the traceback of an error that is a fault of this package or of one below it."""
    sys.stderr.write(printable(traceback.format_exc()))
    sys.exit(1)


def _stop(error: SparsityForcingError) -> NoReturn:
    where = f" on rank {ranks.rank()}" if ranks.world_size() > 1 else ""
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]error{where}:[/] {escape(printable(redact(str(error))))}", highlight=False
    )
    sys.exit(2)


if __name__ == "__main__":
    main()
