"""The one table of stages: what each reads, writes, is repeated over, depends on and is given.

`Snakefile` runs the jobs that `jobs()` lists; `dvc.yaml` is rendered from the same table
(`python -m workflow.dvc_yaml`). A command holds all values that its stage uses, so a changed value
changes the command, and a value that a stage does not use changes nothing.

Placeholders: `{model}`, `{method}`, `{objective}`, `{train_seed}`, `{suite}` are axis values;
`{scale}` and `{seed}` come from the parameters.
"""

from __future__ import annotations

import functools
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sf import provenance
from sf.config import Params, read_yaml, validated
from sf.layout import FOLDERS, STAMP, TRAINED

CORE = (
    "sf/__init__.py",
    "sf/config.py",
    "sf/errors.py",
    "sf/fields.py",
    "sf/layout.py",
    "sf/torchvision_shim.py",
    "sf/training/__init__.py",
    "sf/training/section.py",
)
TABLES = ("sf/report/__init__.py", "sf/report/tables.py")
MODELLING = ("sf/attention", "sf/selection", "sf/models", "sf/data", "sf/progress.py")
DRAWING = ("sf/report/__init__.py", "sf/report/style.py", "sf/report/tables.py")
ANSWERING = ("sf/evaluation/__init__.py", "sf/evaluation/answer.py", "sf/evaluation/intervals.py")
CURVES = (
    "sf/baselines",
    "sf/evaluation/continuation.py",
    "sf/evaluation/curve.py",
    "sf/evaluation/two_turn.py",
    "sf/report/curves.py",
)


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        name: the rule's name; several rules may run the same `sf` stage.
        run: the stage of `sf run`.
        output: key of `sf.layout.FOLDERS`.
        axes: axis name -> dotted path of a list (or of a mapping, whose keys are used) in params.
        folder_axes: what `output`'s placeholders are, where they differ from the axes' names.
        values: flags with fixed text or placeholders, in order.
        sections: parameter sections whose values all go onto the command line; "base" gives the
            section of the model at hand.
        inputs: flag -> (kind, placeholders) of the results that are read.
        code: files and folders that the stage's code lies in, besides `CORE` and its own file.
        gather: kinds of results of which everything is read (the report).
        ranks: can run in several processes, one a GPU.
    """

    name: str
    run: str
    output: str
    axes: Mapping[str, str] = field(default_factory=dict)
    folder_axes: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    gather: tuple[str, ...] = ()
    ranks: bool = False

    @property
    def launch(self) -> str:
        """What stands before the stage's command: `workflow.launch` counts the processes."""
        return "python -m workflow.launch" if self.ranks else ""

    @property
    def code_paths(self) -> list[str]:
        return sorted({f"sf/stages/{self.run}.py", "sf/stages/__init__.py", *CORE, *self.code})

    def output_folder(self, names: Mapping[str, str]) -> str:
        placeholders = {**{axis: names[axis] for axis in self.axes}, "scale": names["scale"]}
        for name, text in self.folder_axes.items():
            placeholders[name] = text.format(**names)
        return FOLDERS[self.output].format(**placeholders)

    def input_folders(self, names: Mapping[str, str]) -> dict[str, str]:
        return {
            flag: FOLDERS[kind].format(
                scale=names["scale"], **{key: text.format(**names) for key, text in given.items()}
            )
            for flag, (kind, given) in self.inputs.items()
        }


MODEL = {"model": "axes.models"}
BASE = {"model": "{model}"}
CHECKPOINT = {"model": "{model}", "objective": "{objective}", "train_seed": "{train_seed}"}
TRAINED_AXES = {
    "model": "axes.models",
    "objective": "axes.objectives",
    "train_seed": "axes.seeds",
}

STAGES = (
    Stage(
        name="benchmarks",
        run="benchmarks",
        output="benchmarks",
        values={"seed": "{seed}"},
        sections=("benchmarks",),
        code=("sf/mini", "sf/evaluation", *TABLES),
    ),
    Stage(
        name="prepare",
        run="prepare",
        output="prepare",
        values={"seed": "{seed}"},
        sections=("prepare", "vision"),
        inputs={"benchmarks": ("benchmarks", {})},
        code=(
            "sf/data",
            "sf/mini",
            "sf/progress.py",
            "sf/report/__init__.py",
            "sf/report/style.py",
            "sf/report/tables.py",
        ),
    ),
    Stage(
        name="base",
        run="base",
        output="base",
        axes={"model": "base"},
        values={"model": "{model}", "seed": "{seed}"},
        sections=("base", "answering", "vision", "runtime"),
        inputs={"data": ("prepare", {})},
        code=(*MODELLING, *TABLES, "sf/mini", "sf/evaluation"),
    ),
    Stage(
        name="calibrate",
        run="calibrate",
        output="calibrate",
        axes=MODEL,
        values={"model": "{model}", "system": "base", "split": "calibration", "seed": "{seed}"},
        sections=("calibrate", "answering", "vision", "runtime"),
        inputs={"checkpoint": ("base", BASE), "data": ("prepare", {})},
        code=(*MODELLING, *ANSWERING, *DRAWING, *CURVES),
    ),
    Stage(
        name="train",
        run="train",
        output="train",
        axes=TRAINED_AXES,
        values={"model": "{model}", "objective": "{objective}", "seed": "{train_seed}"},
        sections=("train", "answering", "vision", "runtime"),
        inputs={"base": ("base", BASE), "data": ("prepare", {})},
        ranks=True,
        code=(*MODELLING, "sf/training", "sf/report/__init__.py", "sf/report/style.py"),
    ),
    Stage(
        name="frontier_base",
        run="calibrate",
        output="frontier",
        axes=MODEL,
        folder_axes={"system": "base"},
        values={"model": "{model}", "system": "base", "split": "heldout", "seed": "{seed}"},
        sections=("calibrate", "answering", "vision", "runtime"),
        inputs={"checkpoint": ("base", BASE), "data": ("prepare", {})},
        code=(*MODELLING, *ANSWERING, *DRAWING, *CURVES),
    ),
    Stage(
        name="frontier_method",
        run="calibrate",
        output="frontier",
        axes={"model": "axes.models", "method": "axes.curve_methods"},
        folder_axes={"system": "{method}"},
        values={
            "model": "{model}",
            "system": "{method}",
            "method": "{method}",
            "split": "heldout",
            "seed": "{seed}",
        },
        sections=("calibrate", "answering", "vision", "runtime"),
        inputs={"checkpoint": ("base", BASE), "data": ("prepare", {})},
        code=(*MODELLING, *ANSWERING, *DRAWING, *CURVES),
    ),
    Stage(
        name="frontier_trained",
        run="calibrate",
        output="frontier",
        axes=TRAINED_AXES,
        folder_axes={"system": TRAINED},
        values={"model": "{model}", "system": "{objective}", "split": "heldout", "seed": "{seed}"},
        sections=("calibrate", "answering", "vision", "runtime"),
        inputs={"checkpoint": ("train", CHECKPOINT), "data": ("prepare", {})},
        code=(*MODELLING, *ANSWERING, *DRAWING, *CURVES),
    ),
    Stage(
        name="evaluate_base",
        run="evaluate",
        output="evaluate",
        axes={"model": "axes.models", "method": "axes.methods", "suite": "benchmarks.suites"},
        folder_axes={"system": "{method}"},
        values={
            "model": "{model}",
            "system": "{method}",
            "method": "{method}",
            "suite": "{suite}",
            "seed": "{seed}",
        },
        sections=("evaluate", "answering", "vision", "runtime"),
        inputs={
            "checkpoint": ("base", BASE),
            "benchmarks": ("benchmarks", {}),
            "data": ("prepare", {}),
        },
        ranks=True,
        code=(*MODELLING, "sf/baselines", "sf/evaluation", "sf/mini", *TABLES),
    ),
    Stage(
        name="evaluate_trained",
        run="evaluate",
        output="evaluate",
        axes={**TRAINED_AXES, "suite": "benchmarks.suites"},
        folder_axes={"system": TRAINED},
        values={
            "model": "{model}",
            "system": "{objective}",
            "method": "trained",
            "suite": "{suite}",
            "seed": "{seed}",
        },
        sections=("evaluate", "answering", "vision", "runtime"),
        inputs={
            "checkpoint": ("train", CHECKPOINT),
            "benchmarks": ("benchmarks", {}),
            "data": ("prepare", {}),
        },
        ranks=True,
        code=(*MODELLING, "sf/baselines", "sf/evaluation", "sf/mini", *TABLES),
    ),
    Stage(
        name="profile",
        run="profile",
        output="profile",
        axes=MODEL,
        values={"model": "{model}", "seed": "{seed}"},
        sections=("profile", "runtime"),
        inputs={"checkpoint": ("base", BASE)},
        code=(*MODELLING, *DRAWING, "sf/profiling", "sf/report/profiles.py"),
    ),
    Stage(
        name="report",
        run="report",
        output="report",
        values={"results": "results/{scale}", "scale": "{scale}"},
        sections=("axes", "benchmarks"),
        code=("sf/report", "sf/evaluation"),
        gather=("calibrate", "train", "frontier", "evaluate", "profile"),
    ),
)


def launcher(run: str, resources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How the Python of a stage of `sf run` is started in several processes; [] for one.

    Args:
        run: the stage.
        resources: the parameters' section.
    """
    given = resources.get(run, resources["default"])
    if given["gpus"] < 2 or not any(stage.ranks for stage in STAGES if stage.run == run):
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={given['gpus']}"]


@dataclass(frozen=True)
class JobSpec:
    """One job of a study: a stage with its axis values filled in."""

    stage: Stage
    names: Mapping[str, str]
    command: str
    inputs: list[str]
    output: str

    @property
    def name(self) -> str:
        values = [self.names[axis] for axis in self.stage.axes]
        return "__".join([self.stage.name, *values])

    @property
    def stamp(self) -> str:
        return f"{self.output}/{STAMP}"


def look_up(params: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted path of the parameters."""
    value: Any = params
    for part in dotted.split("."):
        value = value[part]
    return value


def flag_words(values: Mapping[str, Any]) -> list[str]:
    """A section as words of a command line, spelled as DVC spells a mapping in a command."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *(shlex.quote(str(item)) for item in value)] if value else []
        else:
            words += [f"--{name}", shlex.quote(str(value))]
    return words


def command(stage: Stage, names: Mapping[str, str], section_words: Mapping[str, str]) -> str:
    """The command of one job; the words of each section are given by the engine."""
    words = ["sf run", stage.run, "--study", names["scale"]]
    for flag, text in stage.values.items():
        words += [f"--{flag}", text.format(**names)]
    for flag, path in stage.input_folders(names).items():
        words += [f"--{flag}", path]
    words += ["--output", stage.output_folder(names)]
    words += [section_words[section] for section in stage.sections]
    return " ".join(words)


def jobs(params: Mapping[str, Any]) -> list[JobSpec]:
    """All jobs of a study, each after those whose results it reads."""
    listed: list[JobSpec] = []
    for stage in STAGES:
        for names in _combinations(stage, params):
            sections = {
                section: " ".join(
                    flag_words(
                        params["base"][names["model"]] if section == "base" else params[section]
                    )
                )
                for section in stage.sections
            }
            inputs = [f"{path}/{STAMP}" for path in stage.input_folders(names).values()]
            inputs += [job.stamp for job in listed if job.stage.output in stage.gather]
            listed.append(
                JobSpec(
                    stage=stage,
                    names=names,
                    command=command(stage, names, sections),
                    inputs=inputs,
                    output=stage.output_folder(names),
                )
            )
    return listed


def _combinations(stage: Stage, params: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    constants = {"scale": str(params["scale"]), "seed": str(params["seed"])}
    choices = [list(look_up(params, path)) for path in stage.axes.values()]
    for values in itertools.product(*choices):
        yield {**constants, **dict(zip(stage.axes, map(str, values), strict=True))}


def read_params(path: Path) -> dict[str, Any]:
    """The raw parameters, after the typed model has accepted them.

    Raises:
        ConfigError: see `sf.config.load_params`.
    """
    raw = read_yaml(path)
    validated(Params, raw, f"{path}: ")
    return raw


@functools.cache
def code_digest(run: str) -> str:
    """The hash of the code of a stage of `sf run`, as its stamp holds it."""
    return provenance.code_digest(provenance.ROOT / "sf" / "stages" / f"{run}.py")


def code_files(stage: Stage) -> list[str]:
    """The files that the stage declares: Python and data of the package."""
    files: set[str] = set()
    for declared in stage.code_paths:
        path = provenance.ROOT / declared
        found = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        files.update(str(file.relative_to(provenance.ROOT)) for file in found)
    return sorted(files)


def stale_jobs(specs: list[JobSpec]) -> list[JobSpec]:
    """The jobs whose stamps no longer tell the truth.

    Snakemake knows what it ran itself. It cannot know that a result of the other engine was made
    with other parameters or code, or that a file of a finished result was lost: this looks, cheaply
    (names and sizes). Removing such a stamp makes Snakemake call the stage again; `sf run` then
    adopts what still holds.
    """
    stale = []
    for job in specs:
        path = Path(job.stamp)
        if not path.is_file():
            continue
        stamp = json.loads(path.read_text(encoding="utf-8"))
        whole = all(
            (path.parent / name).is_file() and (path.parent / name).stat().st_size == size
            for name, (size, _) in stamp["files"].items()
        )
        asked = shlex.split(job.command), code_digest(job.stage.run)
        if not whole or (shlex.split(stamp["command"]), stamp["code_hash"]) != asked:
            stale.append(job)
    return stale
