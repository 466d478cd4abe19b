"""The tables and figures of the paper by name, and the jobs of a study that each needs.

A table selects rows by content, not by name: a row with training by its objective and
settings, any other row by its method. A study makes a table if it has such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sf.config import Params
from sf.errors import ConfigError
from sf.report.definitions import DEFINITIONS
from sf.training.objectives import AnyObjective, SparsityForcing

if TYPE_CHECKING:
    from workflow.jobs import JobSpec

__all__ = [
    "TARGETS",
    "asked_jobs",
    "check_asked",
    "closure",
    "jobs_of",
    "lacking",
    "made",
    "models_of",
    "rows_of",
]


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
        name: in the parameters.
        method: of the base model; empty for a row with training.
        objective: its training objective; None without training.
        changed: names of the settings that differ from the objective's sections.
        as_published: its name in the published table, if different.
    """

    name: str
    method: str = ""
    objective: AnyObjective | None = None
    changed: frozenset[str] = frozenset()
    as_published: str = ""


@dataclass(frozen=True)
class Wanted:
    """A kind of row that a table shows.

    Attributes:
        what: description.
        example: the line of params.yaml that adds such a row.
        fits: whether a row is of this kind.
        required: whether the table needs such a row.
        as_published: the rows' name in the published table; empty for the method's or objective's.
    """

    what: str
    example: str
    fits: Callable[[Row], bool]
    required: bool = True
    as_published: str = ""


def _method(name: str) -> Wanted:
    return Wanted(name, f"axes: methods: [{name}]", lambda row: row.method == name)


def _objective(name: str) -> Wanted:
    """The row of an objective with the settings of its sections."""

    def fits(row: Row) -> bool:
        own = row.objective is not None and row.objective.objective == name
        return own and not row.changed

    return Wanted(f"objective {name}", f"objectives: {name}: {{objective: {name}}}", fits)


def _changed(what: str, setting: str, fits: Callable[[SparsityForcing], bool]) -> Wanted:
    """Rows of Sparsity Forcing that differ from the sections in a setting."""
    name = setting.partition(":")[0]

    def fitting(row: Row) -> bool:
        own = isinstance(row.objective, SparsityForcing) and fits(row.objective)
        return own and name in row.changed

    example = f"objectives: NAME: {{objective: sparsity_forcing, {setting}}}"
    return Wanted(f"sparsity_forcing {what}", example, fitting)


def _selector(name: str) -> Wanted:
    return _changed(
        f"with the selector {name}",
        f"rollout_selector: {name}",
        lambda objective: objective.rollout_selector == name,
    )


_FULL = _method("full")
_OWN = _objective("sparsity_forcing")
_DISTIL = Wanted(
    "objective distil",
    "objectives: distil: {objective: distil}",
    lambda row: row.objective is not None and row.objective.objective == "distil",
    required=False,
)
_ALL = (
    Wanted("any method", "axes: methods: [full]", lambda row: bool(row.method), required=False),
    replace(_OWN, required=False),
    replace(_objective("pathwise"), required=False),
    _DISTIL,
)

TARGETS: Mapping[str, tuple[Wanted, ...]] = {
    "table1": _ALL,
    "table2": _ALL,
    "table3": (
        _FULL,
        *map(_objective, ("moba", "nsa", "sharpness", "zipvl_sft")),
        replace(_objective("videonsa"), required=False),
        _OWN,
    ),
    "table4": (
        _selector("top_k"),
        _selector("threshold"),
        replace(_OWN, as_published="top_p"),
    ),
    "table5": (
        _changed(
            "with thresholds drawn uniformly",
            "retention_p: {low: 0.0, high: 1.0}",
            lambda objective: not isinstance(objective.retention_p, list),
        ),
        _changed("with another group size", "group_size: 4", lambda _: True),
        _OWN,
    ),
    "table6": (
        replace(_OWN, as_published="token_reward"),
        replace(
            _changed(
                "rewarded for tokens and latency",
                "reward_latency_weight: 1.0",
                lambda objective: objective.reward_latency_weight > 0,
            ),
            as_published="token_and_latency_reward",
        ),
    ),
    "table7": (_OWN,),
    "table8": (_FULL, _method("temperature"), _OWN),
    "figure4a": _ALL,
    "figure4b": _ALL,
    "figure4c": (),
    "figure4d": (),
    "figure5": _ALL,
    "figure7": (_FULL, replace(_method("zipvl"), required=False), _OWN, _DISTIL),
}
"""Rows of each of `sf.report.definitions.DEFINITIONS`; none if its results belong to no row."""

_OF_NO_ROW = ("calibrate", "profile", "previews")


def rows_of(name: str, params: Params) -> list[Row]:
    """The rows of a study that a table or figure shows.

    Args:
        name: a key of `TARGETS`.
        params: of the study.

    Raises:
        ConfigError: no such table, or the study lacks rows that it needs.
    """
    if name not in TARGETS:
        known = ", ".join([*TARGETS, "all"])
        raise ConfigError("target", name, "is not a table or figure", f"choose one of: {known}")
    rows, missing = _rows(params, DEFINITIONS[name].results), _missing(name, params)
    if missing:
        rule = f"needs rows that params.yaml lacks: {', '.join(w.what for w in missing)}"
        lines = "; ".join(wanted.example for wanted in missing)
        raise ConfigError("target", name, rule, f"add, for example, {lines}")
    chosen = []
    for row in rows:
        wanted = next((w for w in TARGETS[name] if w.fits(row)), None)
        if wanted is not None:
            kind = row.method if row.objective is None else row.objective.objective
            chosen.append(replace(row, as_published=wanted.as_published or kind))
    return chosen


def models_of(name: str, params: Params) -> list[str]:
    """The base models that a table or figure shows: those with a row of each required kind."""
    rows = _rows(params, DEFINITIONS[name].results)
    return [
        model
        for model in params.base
        if all(
            any(wanted.fits(row) and _has(model, row, params) for row in rows)
            for wanted in TARGETS[name]
            if wanted.required
        )
    ]


def _has(model: str, row: Row, params: Params) -> bool:
    return row.name == "base" or params.has_row(model, row.name)


def lacking(params: Params) -> dict[str, int]:
    """The number of missing rows by table; tables without missing rows are omitted."""
    counts = {name: len(_missing(name, params)) for name in TARGETS}
    return {name: count for name, count in counts.items() if count}


def _missing(name: str, params: Params) -> list[Wanted]:
    rows = _rows(params, DEFINITIONS[name].results)
    return [w for w in TARGETS[name] if w.required and not any(map(w.fits, rows))]


def _rows(params: Params, results: Collection[str]) -> list[Row]:
    """The rows of a study that have results of the given kinds."""
    names: list[str] = list(params.axes.methods) if "evaluate" in results else []
    if "accuracy_curve" in results:
        names = ["base", *params.axes.curve_methods]
    untrained = [Row(name, method=name) for name in names]
    trained = [
        Row(name, "", row.objective, frozenset(params.objectives[name]) - {"objective", "models"})
        for name, row in params.trained.items()
    ]
    return [*untrained, *trained]


def jobs_of(name: str, params: Params, listed: Sequence[JobSpec]) -> list[JobSpec]:
    """The jobs whose results a table or figure shows, with only the first training seed.

    Args:
        name: a key of `TARGETS`, or "all" for the selection of `tables` in the parameters.
        params: of the study.
        listed: its jobs.

    Raises:
        ConfigError: no such table, or the study lacks rows or benchmarks that it needs.
    """
    if name == "all":
        return asked_jobs(params, listed)
    rows, definition = {row.name for row in rows_of(name, params)}, DEFINITIONS[name]
    seed, models = params.axes.seeds[0], models_of(name, params)
    if not models:
        rule, remedy = "needs rows that no base model has together", "widen objectives: ROW: models"
        raise ConfigError("target", name, rule, remedy)
    chosen = [
        job
        for job in listed
        if job.stage.output in definition.results
        and (job.parameters.get("row") in rows or job.stage.output in _OF_NO_ROW)
        and job.names.get("train_seed", seed) == seed
        and job.names.get("model") in (None, *models)
        and ("suite" not in job.names or definition.is_in(job.names["suite"]))
    ]
    if not chosen:
        kinds = " or ".join(definition.results)
        remedy = f"add a benchmark of kind {definition.kind or 'image'} to benchmarks: suites"
        raise ConfigError("target", name, f"has no {kinds} job in params.yaml", remedy)
    return chosen


def made(params: Params, listed: Sequence[JobSpec]) -> dict[str, list[JobSpec]]:
    """The tables and figures that a study can produce, and the jobs that each shows.

    Raises:
        ConfigError: see `jobs_of`, for a table named in `tables`.
    """
    possible: dict[str, list[JobSpec]] = {}
    for name in TARGETS:
        try:
            possible[name] = jobs_of(name, params, listed)
        except ConfigError:
            if name in params.tables:
                raise
    return possible


def asked_jobs(params: Params, listed: Sequence[JobSpec]) -> list[JobSpec]:
    """The jobs of `all`: the selected tables, the jobs they need, and the report."""
    if not params.tables:
        return list(listed)
    ends = [job for job in listed if job.names.get("target") in params.tables]
    asked = closure(ends, listed)
    suites = {job.names["suite"] for job in asked if job.stage.output == "evaluate"}
    ends += [job for job in listed if job.stage.name == "previews" and job.names["suite"] in suites]
    ends += [job for job in listed if job.stage.name == "report"]
    return closure(ends, listed)


def check_asked(words: Collection[str], params: Params, listed: Sequence[JobSpec]) -> list[str]:
    """The paths of the tables named on a command line.

    Raises:
        ConfigError: see `jobs_of`.
    """
    names = [name for name in TARGETS if name in words]
    for name in names:
        jobs_of(name, params, listed)
    outputs = {job.names.get("target"): job.output for job in listed}
    return [f"{name}: {outputs[name]}/index.html" for name in names]


def closure(chosen: Iterable[JobSpec], listed: Iterable[JobSpec]) -> list[JobSpec]:
    """The jobs with all their direct and indirect inputs, in the study's order."""
    listed = list(listed)
    wanted = {job.stamp for job in chosen}
    for job in reversed(listed):  # each job comes after those that it reads
        if job.stamp in wanted:
            wanted.update(job.inputs)
    return [job for job in listed if job.stamp in wanted]
