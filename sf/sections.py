"""The parameter sections of the stages, including the shared ones.

Imported without torch. The sections of training are next to the code that they configure. Fields
and validators, with their imports, do not count in a result's key; the accepted values do.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sf.errors import ConfigError
from sf.fields import Fraction, Positive, RetentionP, Section, Seed, TokenRatio


def _known_method(name: str) -> str:
    from sf.baselines.registry import unknown

    hint = unknown(name)
    if hint is not None:
        raise ValueError(f"no method has this name; {hint}")
    return name


def _with_retention_p(name: str) -> str:
    from sf.baselines.registry import without_retention_p

    rule = without_retention_p(_known_method(name))
    if rule is not None:
        raise ValueError(rule)
    return name


def _known_suite(name: str) -> str:
    from sf.evaluation.benchmarks import suite

    try:
        suite(name)
    except ConfigError as error:
        raise ValueError(f"{error.rule}; {error.remedy}") from None
    return name


def _apart(names: list[str]) -> list[str]:
    from sf.evaluation.benchmarks import suite

    owners: dict[str, str] = {}
    for name in names:
        for benchmark in suite(name):
            owner = owners.get(benchmark.name)
            if owner is not None:
                raise ValueError(f"{benchmark.name} is in {owner!r} and in {name!r}; name it once")
            owners[benchmark.name] = name
    return names


Method = Annotated[str, AfterValidator(_known_method)]
CurveMethod = Annotated[str, AfterValidator(_with_retention_p)]
Suite = Annotated[str, AfterValidator(_known_suite)]
Family = Literal["qwen2_vl", "qwen2_5_vl", "llava_onevision", "llava_next_video"]
SCRATCH_FAMILIES = ("qwen2_vl", "qwen2_5_vl")  # supported by source 'scratch'


class Vision(Section):
    """Conversion of images and videos to visual tokens."""

    image_min_pixels: Positive = Field(description="smaller images are enlarged")
    image_max_pixels: Positive = Field(description="larger images are shrunk")
    video_min_pixels: Positive = Field(description="smaller frames are enlarged")
    video_max_pixels: Positive = Field(description="larger frames are shrunk")
    video_max_frames: Positive = Field(description="maximum number of frames per video")
    video_fps: Annotated[float, Field(gt=0)] = Field(description="frames sampled per second")

    @model_validator(mode="after")
    def _ordered(self) -> Vision:
        for kind in ("image", "video"):
            low, high = getattr(self, f"{kind}_min_pixels"), getattr(self, f"{kind}_max_pixels")
            if low > high:
                raise ValueError(f"{kind}_min_pixels {low} is above {kind}_max_pixels {high}")
        return self


class Runtime(Section):
    """Device and dtype of the computation."""

    device: Literal["cpu", "cuda"] = Field(description="device of models and inputs")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="dtype of the weights")


class Answering(Section):
    """Prompting of manifest questions and scoring of replies, the same in every stage."""

    prompt_template: Literal["answer", "think_answer"] = Field(
        description="the answer in <answer> tags, without or after reasoning in <think> tags"
    )
    max_completion_tokens: Positive = Field(description="length limit of a reply")
    correctness_cutoff: Annotated[float, Field(gt=0, le=1)] = Field(
        description="fractional score from which an answer counts as correct"
    )


class Prepare(Section):
    """From rows of Video-R1-260k's schema, or of a user's table, to manifests."""

    source: str = Field(
        description="'synthetic', a local folder, a file of questions (JSONL, "
        "CSV, parquet), or 'hub:OWNER/NAME@REVISION'"
    )
    media: str | None = Field(
        None, description="root of relative media paths; by default the folder of the rows"
    )
    synthetic_rows: Positive | None = Field(
        None, description="number of generated rows, only for source 'synthetic'"
    )
    data_sources: list[str] = Field(
        default_factory=list, description="data_source or top media folder; empty for all"
    )
    sample_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="size of a stratified sample; 0 for all rows"
    )
    calibration_share: Fraction = Field(description="share of the media, selected by hash")
    heldout_share: Fraction = Field(description="share of the media, selected by hash")
    calibration_rows: Positive = Field(description="maximum number of rows of this split")
    heldout_rows: Positive = Field(description="maximum number of rows of this split")
    max_reject_share: Fraction = Field(
        description="largest share of rejected rows; more is an error"
    )

    @model_validator(mode="after")
    def _rows_of_a_synthetic_source(self) -> Prepare:
        if (self.source == "synthetic") != (self.synthetic_rows is not None):
            wanted = "needs" if self.source == "synthetic" else "does not use"
            raise ValueError(f"source {self.source!r} {wanted} synthetic_rows; correct one of them")
        return self


class BaseModelSpec(Section):
    """One base model: trained from scratch, pinned on a hub, or in a local folder."""

    family: Family = Field(description="model class")
    source: str = Field(description="'scratch', a local folder, or 'hub:OWNER/NAME@REVISION'")

    @model_validator(mode="after")
    def _trainable(self) -> BaseModelSpec:
        if self.source == "scratch" and self.family not in SCRATCH_FAMILIES:
            raise ValueError(
                f"source 'scratch' needs a family of {SCRATCH_FAMILIES}, not {self.family}; give a "
                "folder or a hub source"
            )
        return self


class Scratch(Section):
    """Training of base models with source 'scratch'."""

    align_steps: Annotated[int, Field(ge=0)] = Field(
        description="pretraining steps of the vision tower"
    )
    steps: Positive = Field(description="training steps of the whole model")
    batch: Positive = Field(description="questions per step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        description="learning rate of AdamW; Muon's is ten times as large"
    )
    media: Annotated[int, Field(ge=0)] = Field(description="number of generated scenes and clips")
    examples: Annotated[int, Field(ge=0)] = Field(
        description="number of examples in the benchmarks' formats"
    )


class TwoTurn(Section):
    """Second questions, answered with the cache that the first one pruned."""

    retention_p: list[RetentionP] = Field(
        min_length=1, description="retention thresholds of the first turn"
    )
    pairs: Annotated[int, Field(ge=0)] = Field(
        description="maximum number of second questions; 0 for none"
    )


class Calibrate(Section):
    """The curves of token ratio and accuracy over p."""

    retention_p: list[RetentionP] = Field(
        min_length=1, description="thresholds of the curve; full attention is added"
    )
    batch: Positive = Field(description="questions answered at once")
    two_turn: TwoTurn


class Benchmarks(Section):
    """The source of the data of the thirteen benchmarks."""

    source: str = Field(description="'synthetic', 'hub', or a local folder")
    samples: Annotated[int, Field(ge=0)] = Field(
        description="first samples of each task, 0 for all; synthetic: number of generated samples"
    )
    suites: Annotated[list[Suite], AfterValidator(_apart)] = Field(
        description="one evaluation job each: benchmarks, or groups such as 'all' "
        "(one process); empty for no benchmarks"
    )


class Match(Section):
    """The target token ratio for each method's hyperparameter."""

    token_ratio: TokenRatio = Field(description="share of the calibration rows' tokens to keep")
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(description="tolerance of that share")


class Evaluate(Section):
    """The thirteen benchmarks."""

    retention_p: RetentionP = Field(
        description="retention threshold of ZipVL and of models trained with top-p"
    )
    batch: Positive = Field(description="questions answered at once")
    match: Match | None = Field(
        None, description="compare methods at equal token ratio; by default each at its default"
    )


class Profile(Section):
    """Latency and memory against sequence length."""

    models: list[str] = Field(
        description="'checkpoint', or a key of sf.profiling.models.SHAPES (random weights)"
    )
    lengths: list[Positive] = Field(min_length=1, description="prompt lengths in tokens")
    token_ratio: Fraction = Field(description="share of the tokens that each layer keeps")
    layer_shares: list[TokenRatio] = Field(
        default_factory=list,
        description="shares of kept tokens, one per layer of a recorded run, "
        "interpolated over the model's layers; empty for token_ratio in "
        "every layer",
    )
    repeats: Annotated[int, Field(ge=3)] = Field(
        description="repeats of each measurement; 95 % intervals need at least 6"
    )
    decode_tokens: Positive = Field(description="tokens generated after the first one")
    batch: Positive = Field(description="batch size")
    prompts: Literal["text", "video"] = Field(
        description="random text, or a video of increasing length through "
        "processor and vision tower"
    )
    find_largest: bool = Field(description="search the largest batch and the longest prompt")
    memory_limit_gib: Annotated[float, Field(ge=0)] = Field(
        0.0, description="memory limit of that search on a CPU; a GPU's limit is its memory"
    )


class Axes(Section):
    """The axes over which the stages are repeated."""

    methods: list[Method] = Field(min_length=1, description="rows of the tables without training")
    curve_methods: list[CurveMethod] = Field(
        default_factory=list, description="further methods whose curve over p is measured"
    )
    seeds: list[Seed] = Field(min_length=1, description="training seeds")
