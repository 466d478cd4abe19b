"""The jobs of a study: the table of stages with its axis values and parameters filled in."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.atomic_files import write_json
from sf.config import Params, Resources, load_params
from sf.errors import ConfigError
from sf.jobs import stage_module
from sf.layout import FOLDERS, STAMP
from sf.validation import validated
from workflow.stages import STAGES, Stage, stages_of
from workflow.targets import asked_jobs, lacking, made, models_of, rows_of

__all__ = [
    "JobSpec",
    "command",
    "config_file",
    "jobs",
    "launcher",
    "load_params",
    "look_up",
    "resources_of",
    "write_configs",
]


_TORCHRUN = ("-m", "torch.distributed.run")


def launcher(run: str, given: Resources) -> list[str]:
    """The command prefix that starts a stage of `sf run` in several processes; [] for one.

    Raises:
        ConfigError: several nodes for a stage that runs in one process.
    """
    ranks = any(stage.ranks for stage in STAGES if stage.run == run)
    if given.nodes > 1:
        if not ranks:
            rule = f"must be 1: {run} runs in one process"
            raise ConfigError(f"resources.{run}.nodes", given.nodes, rule, "omit it")
        return [*_TORCHRUN, f"--nnodes={given.nodes}", f"--nproc-per-node={given.processes_a_node}"]
    if given.gpus < 2 or not ranks:
        return []
    return [*_TORCHRUN, "--standalone", f"--nproc-per-node={given.gpus}"]


@dataclass(frozen=True)
class JobSpec:
    """One job of a study: a stage with its axis values filled in.

    Attributes:
        stage: of the table.
        names: values of the placeholders.
        command: the command line.
        parameters: of the stage's class, as plain values.
        inputs: files that must exist.
        output: folder of the result.
    """

    stage: Stage
    names: Mapping[str, Any]
    command: str
    parameters: Mapping[str, Any]
    inputs: list[str]
    output: str

    @property
    def name(self) -> str:
        return job_name(self.stage, self.names)

    @property
    def config(self) -> str:
        return config_file(self.stage, self.names)

    @property
    def stamp(self) -> str:
        return f"{self.output}/{STAMP}"


def job_name(stage: Stage, names: Mapping[str, Any]) -> str:
    """The name of a job: the rule and its axis values; for a table, its name."""
    if stage.name == "table":
        return str(names["target"])
    return "__".join([stage.name, *(str(names[axis]) for axis in stage.axes)])


def config_file(stage: Stage, names: Mapping[str, Any]) -> str:
    """The file with the parameters of a job."""
    return f"{FOLDERS['config'].format(scale=names['scale'])}/{job_name(stage, names)}.json"


def command(stage: Stage, names: Mapping[str, Any]) -> str:
    """The command of a job; names need no quotes (`sf.fields.Name`)."""
    return f"sf run {stage.run} --study {names['scale']} --config {config_file(stage, names)}"


def resources_of(run: str, parameters: Mapping[str, Any], params: Params) -> tuple[str, Resources]:
    """The key and the entry of `resources` for a job, without GPUs if it cannot use one.

    Args:
        run: stage of `sf run`.
        parameters: of the job.
        params: of the study.
    """
    name, given = params.resources_of(run)
    computes = any("runtime" in stage.sections for stage in STAGES if stage.run == run)
    base = parameters.get("base", {"source": "scratch"})
    if not computes or (run == "base" and base["source"] != "scratch"):
        given = given.model_copy(update={"gpus": 0})
    return name, given


def look_up(params: Params, dotted: str) -> Any:
    """The value at a dotted path of the parameters."""
    return functools.reduce(getattr, dotted.split("."), params)


def jobs(params: Params) -> list[JobSpec]:
    """All jobs of a study, each after the jobs whose results it reads.

    Raises:
        ConfigError: the parameters of a job do not fit its stage, a table named in `tables` needs
            rows that the study lacks, or a single-process stage requests nodes.
    """
    for name, given in params.resources.items():
        launcher(name, given)
    listed: list[JobSpec] = []
    for stage in stages_of(params):
        if stage.name == "table":
            listed += _table_jobs(stage, params, listed)
            continue
        asked = asked_jobs(params, listed) if stage.gather else []
        inputs = [job.stamp for job in asked if job.stage.output in stage.gather]
        for names in _combinations(stage, params, listed):
            read = [f"{path}/{STAMP}" for path in stage.input_folders(names).values()]
            listed.append(_job(stage, names, params, [*read, *inputs]))
    return listed


def _job(stage: Stage, names: Mapping[str, Any], params: Params, inputs: list[str]) -> JobSpec:
    return JobSpec(
        stage=stage,
        names=names,
        command=command(stage, names),
        parameters=_parameters(stage, names, params),
        inputs=inputs,
        output=stage.output_folder(names),
    )


def _table_jobs(stage: Stage, params: Params, listed: list[JobSpec]) -> list[JobSpec]:
    """A job for each table and figure that the study can produce."""
    specs = []
    for target, shown in made(params, listed).items():
        models, rows = models_of(target, params), rows_of(target, params)
        names = {
            **_constants(params),
            "target": target,
            "models": models,
            "without": _without(params, models, [row.name for row in rows if row.name != "base"]),
            "rows": [
                {
                    "name": row.name,
                    "as_published": row.as_published,
                    "trained": row.objective is not None,
                }
                for row in rows
            ],
            "suites": list(dict.fromkeys(j.names["suite"] for j in shown if "suite" in j.names)),
            "train_seed": params.axes.seeds[0],
        }
        specs.append(_job(stage, names, params, [job.stamp for job in shown]))
    return specs


def _constants(params: Params) -> dict[str, Any]:
    return {
        "scale": params.scale,
        "seed": params.seed,
        "models": list(params.base),
        "objectives": list(params.objectives),
        "without": _without(params, params.base, _rows(params)),
    }


def _rows(params: Params) -> list[str]:
    """The names of all rows, with and without training."""
    axes = params.axes
    return list(dict.fromkeys([*axes.methods, *axes.curve_methods, *params.objectives]))


def _without(params: Params, models: Iterable[str], rows: Sequence[str]) -> dict[str, list[str]]:
    """The rows that a base model does not have, by model; models with all of them are omitted."""
    absent = {m: [row for row in rows if not params.has_row(m, row)] for m in models}
    return {model: names for model, names in absent.items() if names}


def _combinations(stage: Stage, params: Params, listed: list[JobSpec]) -> Iterator[dict[str, Any]]:
    constants = _constants(params)
    if stage.gather:
        tables = [job.names["target"] for job in listed if job.stage.name == "table"]
        constants["targets"] = [name for name in tables if name in (params.tables or tables)]
        constants["lacking"] = lacking(params)
    choices = [list(look_up(params, path)) for path in stage.axes.values()]
    for values in itertools.product(*choices):
        axes = dict(zip(stage.axes, values, strict=True))
        row = axes.get("objective", axes.get("method"))
        if row is None or params.has_row(axes["model"], row):
            yield {**constants, **axes}


def _parameters(stage: Stage, names: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Exactly the parameters that a job uses."""
    values: dict[str, Any] = {}
    for name, text in stage.values.items():
        whole = re.fullmatch(r"\{(\w+)\}", text)
        values[name] = names[whole[1]] if whole else text.format(**names)
    values |= {**stage.input_folders(names), "output": stage.output_folder(names)}
    model = stage_module(stage.run).Parameters
    for section in stage.sections:
        if section == "row":
            values |= dict(params.trained_of(names["model"], names["objective"]))
        elif section == "source":
            values["source"] = params.base[names["model"]].source
        elif section == "base":
            base = params.base[names["model"]].spec
            values |= {
                "base": base,
                "scratch": params.scratch if base.source == "scratch" else None,
            }
        else:
            field, _, shared = section.partition("=")
            values[field] = look_up(params, shared or field)
    return validated(model, values, f"stage {stage.name}: ").model_dump(mode="json")


def write_configs(specs: list[JobSpec], root: Path = Path()) -> list[Path]:
    """Write each job's parameters to its file if they have changed.

    Files of jobs that are no longer in the study are removed.

    Args:
        specs: all jobs of a study.
        root: the checkout.

    Returns:
        The files that were written.
    """
    written = []
    for spec in specs:
        path = root / spec.config
        if not path.is_file() or json.loads(path.read_text("utf-8")) != spec.parameters:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, spec.parameters)
            written.append(path)
    files = {root / spec.config for spec in specs}
    folders = {file.parent for file in files}
    for path in [path for folder in folders for path in folder.glob("*.json")]:
        if path not in files:
            path.unlink()
    return written
