"""The commands for a user's model and questions: `sf evaluate` and `sf train`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from sf.cli.output import stdout
from sf.options import from_dataclasses
from sf.own import Comparison, Inputs, Recipe

__all__ = ["evaluate_command", "separated", "train_command"]

OUTPUT = Annotated[
    Path | None, typer.Option(help="output folder; by default a new one in results/own")
]


def separated(words: list[str]) -> list[str]:
    """Rewrite `--p 0.9 0.975` as `--p 0.9 --p 0.975`, to allow several values per option."""
    result: list[str] = []
    option = ""
    for word in words:
        number = word.startswith("-") and word[1:2].isdigit()
        if word.startswith("-") and not number:
            option = word if word in ("--p", "--methods") else ""
        elif option and result[-1] != option:
            result.append(option)
        result.append(word)
    return result


@from_dataclasses
def evaluate_command(inputs: Inputs, comparison: Comparison, output: OUTPUT = None) -> None:
    """Answer your questions under full attention and sparse methods; write tables and a page."""
    from sf.own.evaluation import evaluate

    folder = evaluate(inputs, comparison, output=output, command=_typed())
    stdout.print(_summary(folder))
    stdout.print(f"page, replies and tables: {escape(str(folder / 'index.html'))}")


@from_dataclasses
def train_command(inputs: Inputs, recipe: Recipe, output: OUTPUT = None) -> None:
    """Train a model on your questions to use fewer tokens; evaluate it on held-out questions."""
    from sf.own.training import train

    trained = train(inputs, recipe, output=output, command=_typed())
    for name, folder in (("before", trained.before), ("after", trained.after)):
        stdout.print(f"{name} training, held-out questions: {escape(str(folder / 'index.html'))}")
        stdout.print(_summary(folder))
    stdout.print(f"the trained model is in {escape(str(trained.checkpoint))}")


def _typed() -> str:
    return shlex.join(["sf", *sys.argv[1:]])


def _summary(folder: Path) -> Table:
    import pandas as pd

    from sf.ask.question_page import summary_table

    shown = summary_table(pd.read_csv(folder / "tables" / "summary.csv"))
    table = Table()
    for number, title in enumerate(shown.header):
        table.add_column(title, justify="left" if number < shown.keys else "right", overflow="fold")
    for row in shown.rows:
        cells: list[Any] = [
            f"{cell.text}\n[dim]{cell.interval}[/]" if cell.interval else cell.text for cell in row
        ]
        table.add_row(*cells)
    return table
