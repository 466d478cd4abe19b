"""The parameter list of `sf run STAGE --help`: every parameter with meaning, value and source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sf.config import Params
from sf.fields import flat
from sf.jobs import stage_module
from sf.overrides import Parameter, parameters_of
from sf.scales import value_sources
from sf.training.objectives import OBJECTIVES
from workflow.jobs import JobSpec, jobs, load_params

__all__ = ["Described", "as_table", "described"]


@dataclass(frozen=True)
class Described:
    """One parameter of a stage.

    Attributes:
        name: dotted.
        meaning: its description and type.
        value: from params.yaml, or the default of its class; None if neither exists.
        source: published, assumed or ours, with the reason; "the job" for axes and folders.
    """

    name: str
    meaning: str
    value: Any
    source: str


def described(stage: str, path: Path = Path("params.yaml")) -> tuple[list[Described], str]:
    """All parameters of a stage, and the name of the job whose values are shown.

    Args:
        stage: of `sf run`.
        path: parameters of a study; without the file, the defaults of the classes are shown.

    Raises:
        ConfigError: no such stage, or a parameters file with errors.
    """
    model = stage_module(stage).Parameters
    params = load_params(path) if path.is_file() else None
    of_stage = [job for job in jobs(params) if job.stage.run == stage] if params else []
    if params is None or not of_stage:
        rows = [Described(p.name, _meaning(p), p.default, "") for p in parameters_of(model, {})]
        return rows, ""
    job, sources = of_stage[0], value_sources(path)
    shown = flat(job.parameters)
    rows = []
    for parameter in parameters_of(model, job.parameters):
        value = shown.get(parameter.name, parameter.default)
        places = _places(parameter.name, job, params)
        source = next((sources[place] for place in places if place in sources), None)
        if source is None:
            source = "" if "." in parameter.name else "the job"
        rows.append(Described(parameter.name, _meaning(parameter), value, source))
    return rows, job.name


def _meaning(parameter: Parameter) -> str:
    return f"{parameter.description} ({parameter.kind})"


def _places(name: str, job: JobSpec, params: Params) -> Iterator[str]:
    """The places of a job's parameter in params.yaml, in order of precedence."""
    section, _, rest = name.partition(".")
    if section in ("objective", "train") and "objective" in job.names:
        row = job.names["objective"]
        own = rest if section == "objective" else name
        if own in flat(params.objectives[row]):
            yield from (f"objectives.{row}.{own}", f"objectives.{row}")
    if section == "train" and name in flat({"train": params.base[job.names["model"]].train}):
        yield f"base.{job.names['model']}.{name}"
    if section == "objective":
        kind = job.parameters["objective"]["objective"]
        yield from (f"{own}.{rest}" for own in OBJECTIVES[kind].sections)
        yield rest
    if section == "base":
        yield f"base.{job.names['model']}.{rest}"
    shared = dict(each.partition("=")[::2] for each in job.stage.sections)
    yield f"{shared[section]}.{rest}" if shared.get(section) else name


def as_table(rows: list[Described]) -> Table:
    """A table with one line per parameter."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("parameter", no_wrap=True)
    for title in ("meaning", "default", "source"):
        table.add_column(title, overflow="fold")
    for row in rows:
        value = "" if row.value is None else str(row.value)
        table.add_row(row.name, escape(row.meaning), escape(value), escape(row.source))
    return table
