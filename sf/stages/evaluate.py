"""Stage `evaluate`: one checkpoint with one attention method on a suite of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section, Seed
from sf.ranks import agreed, rank
from sf.sections import Answering, Evaluate, Match, Method, Runtime, Suite, Vision

if TYPE_CHECKING:
    from sf.evaluation.model import SparseChatModel
    from sf.jobs import Job


RANKS = True


class Parameters(Section):
    """One checkpoint with one attention method on one suite."""

    model: str = Field(description="name of the base model")
    row: str = Field(description="the row's name in the tables: a method or a trained objective")
    method: Method = Field(description="attention method, a key of sf.baselines.METHODS")
    value: float | None = Field(
        None,
        description="value of the method's hyperparameter; by default "
        "evaluate.retention_p for zipvl (also for models trained with "
        "top-p), else the checkpoint's recorded value, else the "
        "method's default",
    )
    suite: Suite = Field(description="a benchmark's name, or image, video, all")
    seed: Seed = Field(description="seed of the bootstrap and of the parsers' random guesses")
    evaluate: Evaluate
    answering: Answering
    vision: Vision
    runtime: Runtime
    checkpoint: Path = Field(description="folder of the model")
    benchmarks: Path = Field(description="result of the stage benchmarks")
    data: Path = Field(
        description="folder of the manifests; evaluate.match searches the value "
        "on the calibration split, with the settings of calibrate"
    )
    output: Path = Field(description="results folder")


def run(p: Parameters, job: Job) -> None:
    """Evaluate the suite with lmms-eval's prompts, parsers and aggregation.

    Writes `results.json`, `samples.jsonl`, `tables/scores.csv` (a line per benchmark),
    `tables/tasks.csv` (lmms-eval's own metrics) and `tables/layers.csv` (token ratio by layer).
    With `evaluate.match` and a method that has a hyperparameter, also writes `tables/matched.csv`
    (one line) and `tables/match_probes.csv` (every value tried).

    Replies are saved in `job.state`, so a killed run resumes at the next batch. A failed benchmark
    is reported after the others have run, and the stage ends without a result.

    Raises:
        ConfigError: an unknown suite or method, or a value that is out of range or given together
            with `evaluate.match`.
        UnsupportedModelError: the method contradicts what the checkpoint was trained with.
        DataError: the benchmark data are missing, or the checkpoint's record is malformed.
        EvaluationFailed: some benchmarks failed.
    """
    from sf.baselines import resolve
    from sf.errors import ConfigError
    from sf.evaluation.benchmarks import suite
    from sf.evaluation.source import read_source

    benchmarks = suite(p.suite)
    attention = resolve(p.checkpoint, p.method, p.value, p.evaluate.retention_p)
    match = p.evaluate.match if attention.hyperparameter is not None else None
    if match is not None and p.value is not None:
        rule = "evaluate.match searches the value itself"
        raise ConfigError("value", p.value, rule, "drop one of them")
    source = read_source(p.benchmarks)

    from sf.evaluation.model import SparseChatModel
    from sf.evaluation.run import evaluate_benchmarks
    from sf.evaluation.tables import write_results
    from sf.result_key.contents import input_digest

    lm = SparseChatModel(
        str(p.checkpoint),
        method=attention.name,
        value=attention.value,
        checkpoint=input_digest(p.checkpoint),
        device=p.runtime.device,
        dtype=p.runtime.dtype,
        batch_size=p.evaluate.batch,
        **p.vision.model_dump(),
        records=str(job.state / "records"),
        opened=True,
    )
    if match is not None:
        lm.set_value(agreed(_match(p, match, job, lm) if rank() == 0 else None))
    results = evaluate_benchmarks(
        lm,
        benchmarks,
        source.home_path(p.benchmarks, job.state),
        job.state,
        limit=source.limit,
        most_new_tokens=source.most_new_tokens,
        seed=p.seed,
        unreadable=source.unreadable,
    )
    if rank():
        return
    figures = write_results(job.out, results, lm, seed=p.seed, model=p.model, row=p.row)
    job.tracker.summary(figures)


def _match(p: Parameters, asked: Match, job: Job, lm: SparseChatModel) -> float:
    """Find the hyperparameter's value for `evaluate.match` and write its tables."""
    from sf.data.manifest import read_manifest
    from sf.evaluation.answer import Answer
    from sf.evaluation.match_token_ratio import match_method, match_table
    from sf.evaluation.resumable_log import ResumableLog
    from sf.tables import write_csv

    match, probes = match_method(
        lm.model,
        lm.processor,
        read_manifest(p.data / "calibration.parquet"),
        p.vision,
        lm.method,
        asked.token_ratio,
        ResumableLog(Answer, job.state / "match.jsonl"),
        tolerance=asked.tolerance,
        batch=p.evaluate.batch,
        max_new_tokens=p.answering.max_completion_tokens,
        template=p.answering.prompt_template,
        cutoff=p.answering.correctness_cutoff,
    )
    write_csv(match_table(lm.method, match, probes), job.out / "tables" / "matched.csv")
    write_csv(probes, job.out / "tables" / "match_probes.csv")
    return match.value
