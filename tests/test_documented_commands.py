"""Every command in README and docs is one that the program itself accepts.

Words in capitals (`CKPT`, `STAGE`) are the reader's own values. A command in a shell block must be
whole; one within a sentence may leave out what its program requires.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from sf.baselines import build
from sf.cli import app
from sf.cli.own import separated
from sf.jobs import stage_module
from sf.profiling.models import SHAPES
from sf.scales import scale_names
from workflow.jobs import jobs, load_params
from workflow.parameter_help import described
from workflow.targets import TARGETS

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "config/README.md",
    ROOT / "reports/measured/README.md",
]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.M | re.S)
PROGRAMS = ("sf", "make", "python", "snakemake", "dvc", "mlflow", "lmms-eval", "pytest")
OTHERS = (".", "curl", "ruff", "mypy", "&&", "sbatch", "xdg-open", "pip", "git")
USAGE_ERROR = typer.BadParameter.__mro__[1]  # some versions of typer have a click of their own
ACTING = {"--help", "--version", "--install-completion", "--show-completion"}  # while being read
LANGUAGES = ("bash", "python", "json", "yaml", "text")


class Command(NamedTuple):
    """One command as documented; `whole`: it stands in a shell block."""

    page: str
    words: tuple[str, ...]
    whole: bool


def commands() -> Iterator[Command]:
    for page in PAGES:
        name, text = str(page.relative_to(ROOT)), page.read_text()
        for language, block in FENCE.findall(text):
            if language == "bash":
                for line in statements(block):
                    yield from split(name, line, whole=True)
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
            if code.split()[0] in PROGRAMS and code.split()[1:]:
                yield from split(name, code, whole=False)


def statements(block: str) -> list[str]:
    """A shell block's commands; a line that ends within quotes goes on in the next."""
    done: list[str] = []
    rest = ""
    for line in block.replace("\\\n", " ").splitlines():
        rest += line
        try:
            shlex.split(rest, comments=True)
        except ValueError:
            rest += "\n"
            continue
        done.append(rest)
        rest = ""
    assert not rest, f"unclosed quotes in {block}"
    return done


def split(page: str, line: str, whole: bool) -> Iterator[Command]:
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if not words and re.match(r"[A-Z_]+=", word):
            continue  # a variable of the environment
        if word != "&&":
            words.append(word)
        elif words:
            yield Command(page, tuple(words), whole)
            words = []


COMMANDS = list(dict.fromkeys(commands()))


def of(program: str) -> pytest.MarkDecorator:
    listed = [command for command in COMMANDS if command.words[0] == program]
    return pytest.mark.parametrize(
        "command", listed, ids=lambda c: f"{c.page}: {' '.join(c.words)}"
    )


def is_own(word: str) -> bool:
    """A placeholder for a value of the reader's."""
    return word.isupper() or word == "…"


# The parsers of the programs


def parsed(words: list[str], whole: bool) -> dict[str, Any]:
    """The values that `sf` reads from its arguments.

    Raises:
        USAGE_ERROR: it does not accept them.
    """
    group: Any = typer.main.get_command(app)
    assert not {*words} & ACTING, "reading it would do it"
    context = group.make_context("sf", separated(words))
    name, command, rest = group.resolve_command(context, context._protected_args + context.args)
    try:
        values: dict[str, Any] = command.make_context(name, rest, parent=context).params
    except USAGE_ERROR as error:
        cut = type(error).__name__ in ("MissingParameter", "BadOptionUsage")
        if whole or not cut:
            raise
        return {}
    return values


class Parsed(Exception):
    """A script has read its arguments."""


def read_by_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script of the checkout up to the end of its argument parser.

    Raises:
        SystemExit: it does not accept the arguments.
    """
    own = argparse.ArgumentParser.parse_args

    def parse_args(*args: Any, **kwargs: Any) -> Any:
        own(*args, **kwargs)
        raise Parsed

    path = f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0]
    given = words[2:] if words[0] == "-m" else words[1:]
    assert (ROOT / path).is_file()
    if not any(word.startswith("-") for word in given):
        return
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [path, *given])
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / path), run_name="__main__")


# What is documented


def test_every_block_says_its_language_and_every_program_is_known() -> None:
    """A block of commands without its language would not be read here."""
    languages = {language for page in PAGES for language, _ in FENCE.findall(page.read_text())}
    assert languages <= set(LANGUAGES)
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(FENCE.findall(page.read_text()))
    assert {command.words[0] for command in COMMANDS} <= {*PROGRAMS, *OTHERS}
    read = {command.words[1] for command in COMMANDS if command.words[0] == "sf" and command.whole}
    assert {"ask", "evaluate", "train", "serve", "convert", "profile", "use", "run"} <= read


def named(parameter: str) -> tuple[str, str]:
    """What `--set` calls a parameter: its dotted name, or the last part of it."""
    return parameter, parameter.rpartition(".")[2]


@of("sf")
def test_sf_reads_it(command: Command) -> None:
    words = [word for word in command.words[1:] if word not in ACTING]
    asked = ACTING.intersection(command.words)
    if asked:
        group: Any = typer.main.get_command(app)
        context = typer.Context(group)
        reader = group.get_command(context, words[0]) if words else group
        shown = reader.get_params(context)
        assert asked <= {option for parameter in shown for option in parameter.opts}
    if not words:
        return
    values = parsed(words, command.whole and not asked)
    match words[0]:
        case "run" if values["stage"] is not None and not is_own(values["stage"]):
            stage_module(values["stage"])
            known = {part for row in described(values["stage"])[0] for part in named(row.name)}
            assert {change.partition("=")[0] for change in values["changes"] or []} <= known
        case "use" | "rehearse" if values and not is_own(values["scale"] or "PARAMS"):
            assert values["scale"] in scale_names()
        case "plan":
            assert values["target"] in ("all", *TARGETS)
        case "evaluate" if values:
            for method, _, value in (word.partition("=") for word in values["methods"] or ()):
                build(method, float(value) if value else None)
        case "profile" if values:
            model, method = values["model"], values["method"]
            assert is_own(model) or model in SHAPES or model.startswith("results/")
            if method:
                build(method, values["value"])


@pytest.mark.parametrize(
    "place",
    sorted(
        {word for command in COMMANDS for word in command.words if word.startswith("results/mini/")}
    ),
)
def test_a_result_of_the_study_is_made_by_it(place: str) -> None:
    made = [Path(job.output) for job in jobs(load_params(ROOT / "params.yaml"))]
    assert any(Path(place).is_relative_to(output) for output in made)


@of("make")
def test_make_has_the_target_and_the_variables(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in command.words[1:]:
        name, assigned, _ = word.partition("=")
        pattern = rf"\$\({name}\)" if assigned else rf"^{name}:"
        assert re.search(pattern, makefile, flags=re.M), word


@of("python")
def test_a_script_reads_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by_script(list(command.words[1:]), monkeypatch)


@of("snakemake")
def test_snakemake_reads_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from snakemake.cli import parse_args

    monkeypatch.chdir(ROOT)
    parse_args(list(command.words[1:]))


@of("dvc")
def test_dvc_reads_it(command: Command) -> None:
    from dvc.cli.parser import get_main_parser

    get_main_parser().parse_args(list(command.words[1:]))


@of("mlflow")
def test_mlflow_reads_it(command: Command) -> None:
    from mlflow.cli import cli

    context = cli.make_context("mlflow", list(command.words[1:]))
    name, found, rest = cli.resolve_command(context, context._protected_args + context.args)
    found.make_context(name, rest, parent=context)


@of("lmms-eval")
def test_lmms_eval_reads_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.__main__ import parse_eval_args

    monkeypatch.setattr(sys, "argv", list(command.words))
    _, values = parse_eval_args()
    assert values.model == "sf_sparse"
    given = dict(part.split("=") for part in values.model_args.split(","))
    build(given["method"], float(given["value"]))


@of("pytest")
def test_the_tests_are_there(command: Command) -> None:
    marker = command.words[command.words.index("-m") + 1] if "-m" in command.words else ""
    for word in command.words[1:]:
        assert word.startswith("-") or word == marker or (ROOT / word).exists()


# What is refused


@pytest.mark.parametrize(
    "line",
    [
        "evaluate --model CKPT --questions q.jsonl --medias DIR",
        "evaluate --questions q.jsonl",
        "serve CKPT --token_ratio 0.25",
        "serve CKPT --port many",
        "answer --model CKPT",
        "use mini compare",
        "train --model CKPT --questions q.jsonl --steps",
    ],
)
def test_what_sf_does_not_accept_fails(line: str) -> None:
    with pytest.raises(USAGE_ERROR):
        parsed(shlex.split(line), whole=True)
