"""Typed parameters of a study: the only reader of YAML.

`params.yaml` holds one `Params`. A stage's own parameters class (in `sf/stages/`) combines the
sections it uses with its axis values and paths, so a stage can be run from its command line alone.
Field names are unique over all sections because both engines flatten them onto one command line.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sf.errors import ConfigError
from sf.fields import Fraction, Positive, RetentionP, Section
from sf.training.config import Train


def _known_method(name: str) -> str:
    # Not a plain import: the list of names decides no result, and what a stage imports is hashed.
    hint = import_module("sf.baselines.registry").unknown(name)
    if hint is not None:
        raise ValueError(f"no method has this name; {hint}")
    return name


def _with_p(name: str) -> str:
    rule = import_module("sf.baselines.registry").without_p(_known_method(name))
    if rule is not None:
        raise ValueError(rule)
    return name


def _known_suite(name: str) -> str:
    try:
        import_module("sf.evaluation.benchmarks").suite(name)  # not a plain import: see above
    except ConfigError as error:
        raise ValueError(f"{error.rule}; {error.remedy}") from None
    return name


def _apart(names: list[str]) -> list[str]:
    found: dict[str, str] = {}
    for name in names:
        for column in import_module("sf.evaluation.benchmarks").suite(name):
            if column.name in found:
                raise ValueError(
                    f"{column.name} is in {found[column.name]!r} and in {name!r}; name it once"
                )
            found[column.name] = name
    return names


Method = Annotated[str, AfterValidator(_known_method)]
CurveMethod = Annotated[str, AfterValidator(_with_p)]
Suite = Annotated[str, AfterValidator(_known_suite)]
Objective = Literal[
    "sparsity_forcing", "v1_range", "pathwise", "zipvl_sft", "sharpness", "moba", "nsa"
]
Family = Literal["qwen2_vl", "qwen2_5_vl", "llava_onevision", "llava_next_video"]
ANSWERING_FAMILIES = ("llava_onevision", "llava_next_video")  # that are not trained here
SCRATCH_FAMILIES = ("qwen2_vl", "qwen2_5_vl")  # of which a tiny model can be trained here
Model = TypeVar("Model", bound=BaseModel)


class Vision(Section):
    """How images and videos become visual tokens, the same in every stage."""

    image_min_pixels: Positive
    image_max_pixels: Positive
    video_min_pixels: Positive = Field(description="per frame")
    video_max_pixels: Positive = Field(description="per frame")
    video_max_frames: Positive
    video_fps: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Vision:
        for kind in ("image", "video"):
            low, high = getattr(self, f"{kind}_min_pixels"), getattr(self, f"{kind}_max_pixels")
            if low > high:
                raise ValueError(f"{kind}_min_pixels {low} is above {kind}_max_pixels {high}")
        return self


class Runtime(Section):
    """Where the numbers are computed."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "float16"]


class Answering(Section):
    """How questions of the manifests are put and replies judged: the same in every stage."""

    prompt_template: Literal["answer", "think_answer"]
    max_completion_tokens: Positive
    correctness_cutoff: Fraction = Field(description="fractional scores at or above it are right")


class Prepare(Section):
    """From rows of Video-R1-260k's schema to manifests."""

    source: str = Field(description="'synthetic', a local folder, or 'hub:OWNER/NAME@REVISION'")
    synthetic_rows: Positive
    data_sources: list[str] = Field(
        default_factory=list, description="data_source or top media folder; empty: all"
    )
    sample_rows: Annotated[int, Field(ge=0, description="a stratified sample; 0: all rows")]
    calibration_share: Fraction = Field(description="of the media, by hash")
    heldout_share: Fraction = Field(description="of the media, by hash")
    calibration_rows: Positive = Field(description="of its share, at most")
    heldout_rows: Positive = Field(description="of its share, at most")
    media_check: bool = Field(description="open every image and video once")
    max_reject_share: Fraction


class BaseModelSpec(Section):
    """One base model: trained from scratch here, or pinned on a hub, or a local folder."""

    family: Family
    source: str = Field(description="'scratch', a local folder, or 'hub:OWNER/NAME@REVISION'")
    base_steps: Annotated[int, Field(ge=0, description="training steps when source is scratch")]
    base_batch: Positive = Field(description="questions a step")
    base_learning_rate: Annotated[float, Field(gt=0)]
    base_align_steps: Annotated[int, Field(ge=0, description="of the vision tower alone")]
    base_media: Annotated[int, Field(ge=0, description="fresh scenes and clips")]
    base_examples: Annotated[int, Field(ge=0, description="in the benchmarks' formats")]

    @model_validator(mode="after")
    def _trainable(self) -> BaseModelSpec:
        if self.source == "scratch" and self.family not in SCRATCH_FAMILIES:
            raise ValueError(
                f"source 'scratch' needs a family of {SCRATCH_FAMILIES}, not {self.family}; give a "
                "folder or a hub source"
            )
        return self


class Calibrate(Section):
    """The p -> token ratio and accuracy curve."""

    calibrate_p: list[RetentionP] = Field(min_length=1)
    calibrate_batch: Positive
    two_turn_p: list[RetentionP] = Field(min_length=1)
    two_turn_pairs: Annotated[int, Field(ge=0, description="second questions at most; 0: none")]


class Benchmarks(Section):
    """Where the thirteen benchmarks' data come from."""

    benchmark_source: str = Field(description="'synthetic', 'hub', or a local folder")
    benchmark_samples: Annotated[int, Field(ge=0, description="0: all; synthetic: how many")]
    suites: Annotated[list[Suite], Field(min_length=1), AfterValidator(_apart)] = Field(
        description="one evaluation job each: columns, or groups such as 'all' (one process)"
    )


class Evaluate(Section):
    """The thirteen benchmarks."""

    inference_p: RetentionP
    evaluate_batch: Positive
    match_ratio: Fraction = Field(
        description="set each method's hyperparameter so that it keeps this share of the "
        "calibration rows' tokens; 0: the methods' own values"
    )
    match_tolerance: Annotated[float, Field(gt=0, lt=1)]


class Profile(Section):
    """Latency and memory against sequence length."""

    profile_subjects: list[str] = Field(
        description="'checkpoint', or a key of sf.profiling.models.SHAPES (random weights)"
    )
    profile_lengths: list[Positive] = Field(min_length=1)
    profile_ratio: Fraction
    profile_layer_shares: list[RetentionP] = Field(
        default_factory=list,
        description="shares of kept tokens, one per layer of a recorded run, stretched over the "
        "subject's layers; empty: profile_ratio in every layer",
    )
    profile_repeats: Annotated[int, Field(ge=3)]
    profile_decode_tokens: Positive
    profile_batch: Positive = Field(description="rows of a prompt's batch")
    profile_prompts: Literal["text", "video"] = Field(
        description="random text, or a video of growing length through processor and vision tower"
    )
    profile_fit: bool = Field(description="search the largest batch and the longest prompt")
    profile_fit_gib: Annotated[float, Field(ge=0)] = Field(
        description="memory limit of that search on a CPU; a GPU's own memory is its limit"
    )


class Axes(Section):
    """What the stages are repeated over."""

    models: list[str] = Field(min_length=1)
    methods: list[Method] = Field(min_length=1)
    curve_methods: list[CurveMethod] = Field(
        default_factory=list, description="methods beside ZipVL whose curve over p is measured"
    )
    objectives: list[Objective] = Field(
        default_factory=list, description="of training; none: a study without training"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="of training")


class Resources(Section):
    """What one job of a stage is given by the scheduler."""

    cpus: Positive
    mem_gib: Positive
    gpus: Annotated[int, Field(ge=0)]
    hours: Annotated[float, Field(gt=0)]


class Params(Section):
    """One study."""

    scale: str
    seed: Annotated[int, Field(ge=0)]
    axes: Axes
    vision: Vision
    runtime: Runtime
    answering: Answering
    prepare: Prepare
    base: dict[str, BaseModelSpec]
    calibrate: Calibrate
    train: Train
    benchmarks: Benchmarks
    evaluate: Evaluate
    profile: Profile
    resources: dict[str, Resources]

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if sorted(self.axes.models) != sorted(self.base):
            raise ValueError(
                f"axes.models {sorted(self.axes.models)} and the keys of base "
                f"{sorted(self.base)} differ; name each model in both"
            )
        untrained = [
            model for model, spec in self.base.items() if spec.family in ANSWERING_FAMILIES
        ]
        if untrained and self.axes.objectives:
            raise ValueError(
                f"axes.objectives with {', '.join(untrained)}: LLaVA models are answered with, not "
                "trained; give them a study with objectives: []"
            )
        misfit = import_module("sf.baselines.registry").misfit
        for model, spec in self.base.items():
            for method in (*self.axes.methods, *self.axes.curve_methods):
                # What a finished checkpoint was trained with is seen when it is loaded.
                trained_with = None if spec.source == "scratch" else method
                rule = misfit(method, spec.family, trained_with)
                if rule is not None:
                    raise ValueError(f"axes.methods with {model}: {rule}")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "parameters file", str(path), "does not exist", "choose a scale: `sf use mini`"
        ) from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(str(path), None, f"is not valid YAML: {error}", "correct it") from error
    if not isinstance(content, dict):
        raise ConfigError(str(path), None, "must hold a mapping", "see params/mini.yaml")
    return content


def validated(model: type[Model], values: dict[str, Any], where: str = "") -> Model:
    """`values` as an instance of `model`.

    Raises:
        ConfigError: names the first offending field, its value, the rule and the remedy; the
            number of further errors is said.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _config_error(model, error, where) from None


def _config_error(model: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    # An unknown key first: the field that is missing beside it is usually the misspelt one.
    errors = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"]) or model.__name__
    value: object = first["input"]
    if first["type"] == "extra_forbidden":
        owner: Any = model
        for part in first["loc"][:-1]:
            owner = getattr(owner, "model_fields", {}).get(part)
            owner = getattr(owner, "annotation", None)
        known = list(getattr(owner, "model_fields", {}))
        near = get_close_matches(str(first["loc"][-1]), known, n=3)
        rule = "is not a known parameter"
        remedy = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    elif first["type"] == "missing":
        value, rule, remedy = None, "is required", "add it; params/mini.yaml has an example"
    else:
        rule = first["msg"].removeprefix("Value error, ")
        remedy = "correct it in the parameters or on the command line"
    if len(errors) > 1:
        remedy += f" ({len(errors) - 1} more errors follow this one)"
    if isinstance(value, dict):
        value = None
    return ConfigError(f"{where}{field}", value, rule, remedy)


def load_params(path: Path) -> Params:
    """The study's parameters, checked.

    Raises:
        ConfigError: see `validated` and `read_yaml`.
    """
    return validated(Params, read_yaml(path), f"{path}: ")


def field_differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every leaf that differs; absent is None."""
    flat_old, flat_new = _flat(old), _flat(new)
    names = dict.fromkeys([*flat_old, *flat_new])
    return [
        (name, flat_old.get(name), flat_new.get(name))
        for name in names
        if flat_old.get(name) != flat_new.get(name)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
