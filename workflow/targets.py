"""The tables and figures of the paper by name, and the jobs of a study that each needs.

A table asks for rows by what they are, not by their names: a row with training by its objective and
settings, any other by its method. A study makes a table when it has such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from sf.config import Params
from sf.errors import ConfigError
from sf.evaluation.benchmarks import suite
from sf.training.objectives import AnyObjective, SparsityForcing
from workflow.jobs import JobSpec, jobs

__all__ = ["TARGETS", "Target", "closure", "files_of_targets", "jobs_of"]


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
        name: in the parameters.
        method: of the base model; empty for a row with training.
        objective: that was trained; None without training.
        changed: names of the settings in which the row differs from the objective's sections.
    """

    name: str
    method: str = ""
    objective: AnyObjective | None = None
    changed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wanted:
    """Rows that a table shows.

    Attributes:
        what: they are.
        example: the line of params.yaml that adds one.
        fits: whether a row is one.
        required: the table is not made without one.
    """

    what: str
    example: str
    fits: Callable[[Row], bool]
    required: bool = True


@dataclass(frozen=True)
class Target:
    """One table or figure.

    Attributes:
        about: what it shows.
        stages: of `sf run`, or kinds of results, that it shows.
        kind: of the benchmarks, "image" or "video"; empty for both.
        rows: that it shows; empty: its results are of no row.
    """

    about: str
    stages: tuple[str, ...]
    kind: str = ""
    rows: tuple[Wanted, ...] = ()


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
_ALL = (
    Wanted("any method", "axes: methods: [full]", lambda row: bool(row.method), required=False),
    replace(_OWN, required=False),
    replace(_objective("pathwise"), required=False),
)

TARGETS: dict[str, Target] = {
    "table1": Target("image benchmarks", ("evaluate",), "image", _ALL),
    "table2": Target("video benchmarks", ("evaluate",), "video", _ALL),
    "table3": Target(
        "trained sparse attention",
        ("evaluate",),
        rows=(_FULL, *map(_objective, ("moba", "nsa", "sharpness", "zipvl_sft")), _OWN),
    ),
    "table4": Target(
        "selectors of training and inference",
        ("evaluate",),
        rows=(_selector("top_k"), _selector("threshold"), _OWN),
    ),
    "table5": Target(
        "ranges of thresholds and group sizes",
        ("evaluate",),
        rows=(
            _changed(
                "with thresholds drawn uniformly",
                "retention_p: {low: 0.0, high: 1.0}",
                lambda objective: not isinstance(objective.retention_p, list),
            ),
            _changed("with another group size", "group_size: 4", lambda _: True),
            _OWN,
        ),
    ),
    "table6": Target(
        "rewards for tokens, and for tokens and latency",
        ("evaluate",),
        "video",
        (
            _changed(
                "rewarded for tokens and latency",
                "reward_latency_weight: 1.0",
                lambda objective: objective.reward_latency_weight > 0,
            ),
            _OWN,
        ),
    ),
    "table7": Target("cost of training", ("train",), rows=(_OWN,)),
    "table8": Target(
        "softmax temperatures", ("evaluate",), rows=(_FULL, _method("temperature"), _OWN)
    ),
    "figure4a": Target("threshold, token ratio and accuracy", ("accuracy_curve",), rows=_ALL),
    "figure4b": Target("token ratio and accuracy by prompt length", ("accuracy_curve",), rows=_ALL),
    "figure4c": Target("prefill latency by prompt length", ("profile",)),
    "figure4d": Target("decoding memory by prompt length", ("profile",)),
    "figure5": Target(
        "token ratio by layer before and after training", ("accuracy_curve",), rows=_ALL
    ),
}


def jobs_of(name: str, params: Params, listed: Sequence[JobSpec] | None = None) -> list[JobSpec]:
    """The jobs whose results a table or figure shows.

    Args:
        name: a key of `TARGETS`, or "all": every job of the study.
        params: of the study.
        listed: its jobs; by default they are made of the parameters.

    Raises:
        ConfigError: no such table, or rows that it needs are not in the study.
    """
    listed = jobs(params) if listed is None else list(listed)
    if name == "all":
        return listed
    if name not in TARGETS:
        known = ", ".join([*TARGETS, "all"])
        raise ConfigError("target", name, "is no table or figure", f"choose one of: {known}")
    target, rows = TARGETS[name], _rows(params)
    missing = [w for w in target.rows if w.required and not any(map(w.fits, rows))]
    if missing:
        rule = f"needs rows that params.yaml does not have: {', '.join(w.what for w in missing)}"
        lines = "; ".join(wanted.example for wanted in missing)
        raise ConfigError("target", name, rule, f"add for example {lines}")
    fitting = {row.name for row in rows if any(w.fits(row) for w in target.rows)}
    chosen = [
        job
        for job in listed
        if {job.stage.run, job.stage.output} & set(target.stages)
        and (not target.rows or job.parameters.get("row") in fitting)
        and (not target.kind or any(b.kind == target.kind for b in suite(job.names["suite"])))
    ]
    if not chosen:
        stages = " or ".join(target.stages)
        remedy = f"add a benchmark of kind {target.kind} to benchmarks: suites"
        raise ConfigError("target", name, f"has no {stages} job in params.yaml", remedy)
    return chosen


def files_of_targets(
    params: Params, listed: Sequence[JobSpec], asked: Collection[str]
) -> dict[str, list[str]]:
    """The files of each table and figure that a study can make.

    Args:
        params: of the study.
        listed: its jobs.
        asked: names for which the lack of rows is an error.

    Raises:
        ConfigError: see `jobs_of`, of what was asked for.
    """
    files = {}
    for name in TARGETS:
        try:
            files[name] = [job.stamp for job in jobs_of(name, params, listed)]
        except ConfigError:
            if name in asked:
                raise
    return files


def _rows(params: Params) -> list[Row]:
    names = dict.fromkeys(["base", *params.axes.methods, *params.axes.curve_methods])
    untrained = [Row(name, method=name) for name in names]
    trained = [
        Row(name, "", row.objective, frozenset(params.objectives[name]) - {"objective"})
        for name, row in params.trained.items()
    ]
    return [*untrained, *trained]


def closure(chosen: Iterable[JobSpec], listed: Iterable[JobSpec]) -> list[JobSpec]:
    """The jobs and all those whose results they read, directly or not, in the study's order."""
    listed = list(listed)
    wanted = {job.stamp for job in chosen}
    for job in reversed(listed):  # each job stands after those that it reads
        if job.stamp in wanted:
            wanted.update(job.inputs)
    return [job for job in listed if job.stamp in wanted]
