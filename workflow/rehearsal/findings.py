"""Faults in a study's parameters, each with the parameter to change and the rule."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sf.attention.trained import record_of
from sf.baselines.registry import misfit
from sf.config import DENSE, Params
from sf.errors import ConfigError, SparsityForcingError
from sf.jobs import stage_module
from sf.profiling.models import published
from sf.training.build_trainer import check_sharding
from sf.training.objectives import AnyObjective, Distil, Pathwise, block_attention
from sf.training.settings import micro_batch
from sf.training.trainer_config import Rollouts, Uniform
from sf.validation import validated
from workflow.jobs import JobSpec

__all__ = ["dense_ratios", "rank_faults", "unfit_bases", "usable"]

_ROW = re.compile(r"objectives\.([\w.-]+?)(?:\.|$)")


def usable(values: Mapping[str, Any], where: str) -> tuple[Params | None, list[Exception]]:
    """The parameters without invalid parts, and one error for each part that was removed.

    Invalid rows with training and invalid methods are removed, so that the others can be checked.
    Any other fault ends the check.

    Args:
        values: of a whole study.
        where: the file name for the messages.

    Returns:
        The parameters, or None if they are unusable, and the errors.
    """
    given = {**values, "axes": {**(values.get("axes") or {})}}
    given["objectives"] = {**(values.get("objectives") or {})}
    errors: list[Exception] = list(_unfit_methods(given))
    while True:
        try:
            return validated(Params, given, where), errors
        except ConfigError as error:
            errors.append(error)
            row = _ROW.search(error.field)
            name = row[1] if row else error.value if error.field.endswith("objectives") else None
            if name not in given["objectives"]:
                return None, errors
            del given["objectives"][name]


def _unfit_methods(values: dict[str, Any]) -> Iterator[ConfigError]:
    """Errors for methods that a base model does not support; removes them from `values`."""
    bases = values.get("base")
    if not isinstance(bases, Mapping):
        return
    for axis in ("methods", "curve_methods"):
        methods = values["axes"].get(axis)
        for method in list(methods) if isinstance(methods, list) else []:
            faults = [
                ConfigError(f"axes.{axis}", method, f"cannot run on base.{model}: {rule}")
                for model, spec in bases.items()
                if isinstance(spec, Mapping) and method not in (spec.get("without") or ())
                for rule in [_misfit(method, spec)]
                if rule is not None
            ]
            if faults:
                values["axes"][axis] = [each for each in values["axes"][axis] if each != method]
                values["base"] = {
                    model: {**spec, "without": [m for m in spec["without"] if m != method]}
                    if isinstance(spec, Mapping) and spec.get("without")
                    else spec
                    for model, spec in bases.items()
                }
            yield from faults


def _misfit(method: Any, spec: Mapping[str, Any]) -> str | None:
    """The reason why a method cannot run on a base model, from its checkpoint's record."""
    source = str(spec.get("source", ""))
    trained_with: str | None = None
    if source.startswith("hub:"):
        if published(source.removeprefix("hub:").partition("@")[0]) is None:
            trained_with = str(method)  # unknown before it is fetched
    elif source != "scratch" and (Path(source) / "config.json").is_file():
        try:
            record = record_of(Path(source))
        except SparsityForcingError:
            return None  # the sources are looked at apart
        trained_with = record.method if record is not None else None
    return misfit(str(method), str(spec.get("family", "")), trained_with)


def unfit_bases(params: Params) -> Iterator[tuple[str, ConfigError]]:
    """Errors for rows whose training would change the attention of a trained base checkpoint.

    Yields:
        The base model's name, and the error.
    """
    for model, spec in params.base.items():
        folder = Path(spec.source)
        if spec.source == "scratch" or not (folder / "config.json").is_file():
            continue
        try:
            record = record_of(folder)
        except SparsityForcingError:
            continue  # the sources are looked at apart
        for name, row in params.trained.items():
            if not params.has_row(model, name):
                continue
            if record is not None and record.block and block_attention(row.objective) is None:
                rule = f"cannot be trained on base.{model}, which was trained with {record.method}"
                remedy = f"train the objective {record.method}, or start from a base before it"
                field = f"objectives.{name}.objective"
                yield model, ConfigError(field, row.objective.objective, rule, remedy)


def dense_ratios(params: Params) -> Iterator[ConfigError]:
    """Errors for settings that keep nearly all tokens, so that nothing is measured."""
    given: list[tuple[str, float, str]] = []
    for name, row in params.trained.items():
        given += _ratios(f"objectives.{name}", row.objective)
    if params.evaluate.retention_p == 1:
        given.append(("evaluate.retention_p", 1.0, "below 1, published 0.975"))
    if params.evaluate.match is not None:
        ratio = params.evaluate.match.token_ratio
        given.append(("evaluate.match.token_ratio", ratio, "published 0.25"))
    shares, remedy = params.profile.layer_shares, "the trained models' ratio, published 0.25"
    if shares:
        given.append(("profile.layer_shares", sum(shares) / len(shares), remedy))
    else:
        given.append(("profile.token_ratio", params.profile.token_ratio, remedy))
    for field, ratio, sensible in given:
        if ratio >= DENSE:
            rule = f"keeps {ratio:.2g} of the tokens, and {DENSE} or more counts as all"
            yield ConfigError(field, round(ratio, 4), rule, f"set it {sensible}")


def _ratios(name: str, objective: AnyObjective) -> Iterator[tuple[str, float, str]]:
    """Token ratios that a row sets, and 1 if its thresholds keep everything."""
    if isinstance(objective, Distil):
        yield f"{name}.target_token_ratio", objective.target_token_ratio, "to 0.25, as published"
    if isinstance(objective, Pathwise) and objective.pathwise.target is not None:
        ratio = objective.pathwise.target.token_ratio
        yield f"{name}.pathwise.target.token_ratio", ratio, "to 0.25, as published"
    if not isinstance(objective, Rollouts):
        return
    given = objective.retention_p
    values = [given.low, given.high] if isinstance(given, Uniform) else given
    mean = sum(values) / len(values)
    if objective.rollout_selector == "top_k":
        yield f"{name}.retention_p", mean, "to shares of the tokens around 0.25"
    elif objective.rollout_selector == "top_p" and mean == 1:
        yield f"{name}.retention_p", 1.0, "below 1, published 0.94 to 0.975"


def rank_faults(specs: list[JobSpec], params: Params) -> Iterator[ConfigError]:
    """Errors for training jobs whose rollouts or weights cannot be divided over their processes."""
    for job in specs:
        if job.stage.run != "train":
            continue
        p = validated(stage_module("train").Parameters, job.parameters)
        ranks = params.resources_of("train")[1].processes
        for check in (check_sharding, micro_batch):
            try:
                check(p, ranks)
            except ConfigError as error:
                yield ConfigError(f"{job.name}: {error.field}", error.value, error.rule,
                                  error.remedy)  # fmt: skip
