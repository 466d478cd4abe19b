"""A job of params.yaml from the command line: `sf run STAGE --set NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sf.errors import ConfigError
from sf.jobs import stage_module
from sf.overrides import overridden
from sf.result_key.contents import digest_of
from sf.validation import validated
from workflow.jobs import JobSpec, jobs, load_params

__all__ = ["OWN", "asked_job", "chosen_job", "own_output"]

OWN = "results/own"  # results outside any study
MOST_NAMED = 8


def asked_job(
    stage: str, words: Sequence[str], path: Path = Path("params.yaml")
) -> tuple[dict[str, Any], str]:
    """The parameters of a job of the study, with some overridden.

    Args:
        stage: of `sf run`.
        words: "NAME=VALUE" each (`sf.overrides.overridden`). Names that tell the stage's jobs from
            each other, such as row, method or seed, also choose the job.
        path: the study's parameters.

    Returns:
        The parameters, and the study's name or "own" if a parameter was changed. The result of a
        changed job gets a separate folder, unless the words give an output.

    Raises:
        ConfigError: the words name no parameter, fit several jobs, or give values that the stage
            does not accept.
    """
    job, rest = chosen_job(stage, words, path)
    if not rest:
        return dict(job.parameters), job.names["scale"]
    return own_output(stage, job.name, job.parameters, rest), "own"


def chosen_job(
    stage: str, words: Sequence[str], path: Path = Path("params.yaml")
) -> tuple[JobSpec, list[str]]:
    """The job that the words choose, and the words that change it.

    Raises:
        ConfigError: the words fit several jobs.
    """
    stage_module(stage)
    left = [job for job in jobs(load_params(path)) if job.stage.run == stage]
    if not left:
        remedy = "give one with --config, or extend the axes of the stage"
        raise ConfigError("stage", stage, f"has no job in {path}", remedy)
    rest = []
    for word in words:
        name, _, text = word.partition("=")
        fitting = [job for job in left if str(job.parameters.get(name)) == text]
        left = fitting or left
        rest += [] if fitting else [word]
    if len(left) > 1:
        choices = _choices([job.parameters for job in left])
        names = ", ".join(job.name for job in left[:MOST_NAMED])
        more = ", …" if len(left) > MOST_NAMED else ""
        rule = f"matches {len(left)} jobs of {path}: {names}{more}"
        raise ConfigError("stage", stage, rule, f"choose one, for example {choices}")
    return left[0], rest


def _choices(values: list[Mapping[str, Any]]) -> str:
    """The values that distinguish the first of several jobs from the others."""
    first = values[0]
    words = []
    for name, value in first.items():
        same = [other for other in values if other.get(name) == value]
        is_path = name == "output" or str(value).startswith("results/")
        if isinstance(value, str | int) and not is_path and len(same) < len(values):
            words.append(f"--set {name}={value}")
            values = same
    return " ".join(words)


def own_output(
    stage: str, name: str, values: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any]:
    """The overridden values, validated, and a separate folder for the result.

    Args:
        stage: of `sf run`.
        name: of the job, for the folder.
        values: of the job.
        words: "NAME=VALUE" each.

    Raises:
        ConfigError: see `asked_job`.
    """
    model = stage_module(stage).Parameters
    changed = validated(model, overridden(model, values, words)).model_dump(mode="json")
    if changed["output"] == values["output"]:
        digest = digest_of({key: value for key, value in changed.items() if key != "output"})
        changed["output"] = f"{OWN}/{name}__{digest[:8]}"
    return changed
