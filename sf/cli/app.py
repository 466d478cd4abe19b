"""The application: every command under its name."""

from __future__ import annotations

from typing import Annotated

import typer

import sf
from sf.cli import convert, model, own, study

__all__ = ["app"]

app = typer.Typer(
    help="Sparsity Forcing: multimodal LLMs that answer with fewer tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("run", add_help_option=False)(study.run_command)
app.command("use")(study.use_command)
app.command("status")(study.status_command)
app.command("plan")(study.plan_command)
app.command("rehearse")(study.rehearse_command)
app.command("ask")(model.ask_command)
app.command("curve")(model.curve_command)
app.command("evaluate")(own.evaluate_command)
app.command("train")(own.train_command)
app.command("serve")(model.serve_command)
app.command("convert")(convert.convert_command)
app.command("profile")(model.profile_command)
app.command("log")(study.log_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sf {sf.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    """Sparsity Forcing: multimodal LLMs that answer with fewer tokens."""
