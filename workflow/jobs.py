"""The jobs of a study: the table of stages with its axis values and parameters filled in."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.config import Params, read_yaml, validated
from sf.layout import STAMP
from workflow.stages import STAGES, Stage

__all__ = [
    "JobSpec",
    "command",
    "flag_words",
    "jobs",
    "launcher",
    "look_up",
    "read_params",
]


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
