"""Typed parameters of a study.

`params.yaml` contains one `Params`. A stage's parameters class (in `sf/stages/`) contains the
sections it uses, its axis values and paths; `workflow.jobs` creates it for each job.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    model_validator,
)

from sf.baselines.registry import misfit
from sf.errors import ConfigError
from sf.fields import Name, Positive, Section, Seed
from sf.report.definitions import DEFINITIONS
from sf.sections import (
    Answering,
    Axes,
    BaseModelSpec,
    Benchmarks,
    Calibrate,
    Evaluate,
    Method,
    Prepare,
    Profile,
    Runtime,
    Scratch,
    Vision,
)
from sf.training.block_config import BlockSettings, MobaSettings, NsaSettings, VideoNsaSettings
from sf.training.config import Train
from sf.training.distil_config import DistilSettings
from sf.training.objectives import OBJECTIVES, Objective
from sf.training.pathwise_config import SparsityTermSettings
from sf.training.sharpness_config import SharpnessSettings
from sf.training.trainer_config import GrpoSettings, Rollouts
from sf.validation import merged, read_yaml, validated

DENSE = 0.95  # token ratio from which attention over blocks counts as dense


def _known_table(name: object) -> str:
    given = str(name)
    for known in (given, f"table{given}", f"figure{given}"):
        if known in DEFINITIONS:
            return known
    near = get_close_matches(given, DEFINITIONS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(DEFINITIONS)}"
    raise ValueError(f"no table or figure has this name; {hint}")


TableName = Annotated[str, BeforeValidator(_known_table)]


class Resources(Section):
    """The resources of one job of a stage."""

    cpus: Positive = Field(description="CPUs per node")
    mem_gib: Positive = Field(description="memory per node")
    gpus: Annotated[int, Field(ge=0, description="GPUs per node, one process each")]
    hours: Annotated[float, Field(gt=0)]
    nodes: Positive = Field(1, description="number of nodes; several need Slurm")

    @property
    def all_gpus(self) -> int:
        """GPUs on all nodes."""
        return self.gpus * self.nodes

    @property
    def processes_a_node(self) -> int:
        """Processes per node of a multi-process stage: one per GPU."""
        return max(1, self.gpus)

    @property
    def processes(self) -> int:
        """Processes of a multi-process stage on all nodes."""
        return self.processes_a_node * self.nodes


class StudyModel(BaseModelSpec):
    """A base model of a study: where it is from, and what differs for it."""

    without: list[Method] = Field(
        default_factory=list,
        description="methods of axes that this model does not run; those that it cannot run",
    )
    train: dict[str, Any] = Field(
        default_factory=dict, description="settings of the section train that differ for it"
    )

    @property
    def spec(self) -> BaseModelSpec:
        """Where it is from."""
        return BaseModelSpec(family=self.family, source=self.source)


class TrainedRow(Section):
    """A row with training: its objective and the common settings."""

    objective: Objective
    train: Train


class Params(Section):
    """One study."""

    scale: Name
    seed: Seed
    tables: list[TableName] = Field(
        default_factory=list,
        description="tables and figures that `all` produces, such as 1, table1 or "
        "figure4a; empty for every row and every table that the rows "
        "allow",
    )
    axes: Axes
    vision: Vision
    evaluation_vision: Vision
    runtime: Runtime
    answering: Answering
    prepare: Prepare
    base: Annotated[dict[Name, StudyModel], Field(min_length=1)]
    scratch: Scratch | None = Field(
        None, description="training of base models with source 'scratch'"
    )
    calibrate: Calibrate
    train: Train
    rollouts: Rollouts
    grpo: GrpoSettings
    pathwise: SparsityTermSettings
    distil: DistilSettings
    sharpness: SharpnessSettings
    moba: MobaSettings
    nsa: NsaSettings
    videonsa: VideoNsaSettings
    objectives: dict[Name, dict[str, Any]] = Field(
        description="rows with training: objective, settings that differ from its sections, and "
        "`models` if not all base models are trained; empty for no training"
    )
    benchmarks: Benchmarks
    evaluate: Evaluate
    profile: Profile
    resources: dict[str, Resources]
    _trained: dict[str, TrainedRow] = PrivateAttr()
    _of_models: dict[tuple[str, str], TrainedRow] = PrivateAttr()

    def resources_of(self, run: str) -> tuple[str, Resources]:
        """The key and the entry of `resources` for a stage of `sf run`."""
        name = run if run in self.resources else "default"
        return name, self.resources[name]

    @property
    def trained(self) -> Mapping[str, TrainedRow]:
        """The rows with training, with all settings but those of a base model."""
        return self._trained

    def trained_of(self, model: str, row: str) -> TrainedRow:
        """A row with training with all settings, for a base model that `has_row`."""
        return self._of_models[model, row]

    def has_row(self, model: str, row: str) -> bool:
        """Whether a row of the tables, with or without training, is to be made for a base model."""
        if row in self.objectives:
            return (model, row) in self._of_models
        return row not in self.base[model].without

    @model_validator(mode="after")
    def _rows_complete(self) -> Params:
        self._trained = {name: self._complete(name, row) for name, row in self.objectives.items()}
        self._of_models = {}
        for name, row in self.objectives.items():
            for model in _models_of(name, row, list(self.base)):
                own = self.base[model].train
                values = merged(self.train.model_dump(), own)
                validated(Train, values, f"base.{model}.train.")
                trained = self._complete(name, row, own) if own else self._trained[name]
                self._of_models[model, name] = trained
        return self

    def _complete(
        self, name: str, row: dict[str, Any], train: Mapping[str, Any] | None = None
    ) -> TrainedRow:
        """A row with all settings, unchanged ones taken from their sections.

        Args:
            name: of the row.
            row: its settings.
            train: settings of the section train that differ for a base model; the row's own go
                first.
        """
        if name == "base" or name in (*self.axes.methods, *self.axes.curve_methods):
            rule = "is also the name of a row without training"
            raise ConfigError("objectives", name, rule, "choose another name")
        kind = row.get("objective")
        if kind not in OBJECTIVES:
            near = get_close_matches(str(kind), OBJECTIVES, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(OBJECTIVES)}"
            where = f"objectives.{name}.objective"
            raise ConfigError(where, kind, "is not a known objective", remedy)
        settings: dict[str, Any] = {}
        for section in OBJECTIVES[kind].sections:
            settings |= getattr(self, section).model_dump()
        if "pathwise" in OBJECTIVES[kind].model_fields:
            settings["pathwise"] = self.pathwise.model_dump()
        own = {key: value for key, value in row.items() if key not in ("train", "models")}
        common = row.get("train", {})
        if not isinstance(common, dict):
            raise ConfigError(f"objectives.{name}.train", common, "must be a mapping")
        values = {
            "objective": merged(settings, own),
            "train": merged(merged(self.train.model_dump(), train or {}), common),
        }
        complete = validated(TrainedRow, values, f"objectives.{name}: ")
        if isinstance(complete.objective, BlockSettings):
            _check_sparse(f"objectives.{name}", complete.objective, self.vision)
        return complete

    @model_validator(mode="after")
    def _trained_from_scratch(self) -> Params:
        from_scratch = [model for model, spec in self.base.items() if spec.source == "scratch"]
        if from_scratch and self.scratch is None:
            rule = f"is required: {', '.join(from_scratch)} has source 'scratch'"
            raise ConfigError("scratch", None, rule, "add the section; params/mini.yaml has one")
        if self.scratch is not None and not from_scratch:
            rule = "is not used: no base model has source 'scratch'"
            raise ConfigError("scratch", None, rule, "remove the section")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        for model, spec in self.base.items():
            for method in (*self.axes.methods, *self.axes.curve_methods):
                # The method of a finished checkpoint is checked when it is loaded.
                trained_with = None if spec.source == "scratch" else method
                rule = misfit(method, spec.family, trained_with)
                if rule is not None and method not in spec.without:
                    fault, _, remedy = rule.partition("; ")
                    remedy = f"{remedy}, or add it to base.{model}.without"
                    raise ConfigError("axes.methods", method, f"{model}: {fault}", remedy)
            unknown = set(spec.without) - {*self.axes.methods, *self.axes.curve_methods}
            if unknown:
                rule = f"{', '.join(sorted(unknown))} is not one of axes.methods"
                raise ConfigError(f"base.{model}.without", spec.without, rule, "leave it out")
        return self


def _models_of(name: str, row: Mapping[str, Any], every: list[str]) -> list[str]:
    """The base models that a row with training is made for."""
    given = row.get("models", every)
    where, known = f"objectives.{name}.models", f"known: {', '.join(every)}"
    if not isinstance(given, list) or not given:
        raise ConfigError(where, given, "must be a list of base models", known)
    for model in given:
        if model not in every:
            raise ConfigError(where, model, "is not one of the base models", known)
    return given


def _check_sparse(name: str, settings: BlockSettings, vision: Vision) -> None:
    """Reject block attention that reads all of every prompt."""
    from sf.data.budget import longest_prompt

    length = longest_prompt(vision)
    ratio = settings.expected_ratio(length)
    if ratio >= DENSE:
        rule = f"keeps {ratio:.2f} of a prompt of {length:,} tokens, the longest under vision"
        remedy = "set token_ratio: 0.25 instead of a number of blocks, and smaller blocks"
        raise ConfigError(name, settings.model_dump(exclude_none=True), rule, remedy)


def load_params(path: Path) -> Params:
    """The validated parameters of a study.

    Raises:
        ConfigError: see `validated` and `read_yaml`.
    """
    return validated(Params, read_yaml(path), f"{path}: ")
