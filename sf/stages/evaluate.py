"""Stage `evaluate`: one checkpoint with one attention method on a suite of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sf.ranks import agreed, rank
from sf.sections import Answering, Evaluate, Method, Runtime, Suite, Vision

if TYPE_CHECKING:
    from sf.evaluation.model import SparseChatModel
    from sf.jobs import Job


RANKS = True


class Parameters(Vision, Runtime, Answering, Evaluate):
    """One job.

    Attributes:
        model: name of the base model.
        system: what the row is called: the method, or the objective that the checkpoint was
            trained with.
        method: attention method (a key of `sf.baselines.METHODS`).
        value: of the hyperparameter. By default `inference_p` for zipvl, which models trained with
            top-p run under, else what the checkpoint records, else the method's own default.
        suite: a benchmark's name, or "image", "video", "all".
        seed: of the bootstrap and of the parsers' random guesses.
        checkpoint: folder of the model.
        benchmarks: result of the `benchmarks` stage.
        data: folder of the manifests: with `match_ratio` the value is searched on the calibration
            split, answered as `calibrate` does.
    """

    model: str
    system: str
    method: Method
    value: float | None = None
    suite: Suite
    seed: int
    checkpoint: Path
    benchmarks: Path
    data: Path
    output: Path


def run(p: Parameters, job: Job) -> None:
    """Evaluate the suite with lmms-eval's own prompts, parsers and aggregation.

    Writes `results.json`, `samples.jsonl`, `tables/scores.csv` (a line per benchmark),
    `tables/tasks.csv` (lmms-eval's own metrics) and `tables/layers.csv` (token ratio by layer).
    With `match_ratio`, for a method that has a hyperparameter, also `tables/matched.csv` (in
    one line) and `tables/match_probes.csv` (every value tried).

    Replies are kept in `job.state`: a killed run goes on with the next batch. A benchmark that
    fails is reported after the others were tried, and the stage ends without a result.

    Raises:
        ConfigError: an unknown suite or method, a value out of its range or beside `match_ratio`.
        UnsupportedModelError: the method contradicts what the checkpoint was trained with.
        DataError: the benchmarks' data are not there, or the checkpoint's record is malformed.
        EvaluationFailed: some benchmarks failed.
    """
    from sf.baselines import resolve
    from sf.errors import ConfigError
    from sf.evaluation.benchmarks import suite
    from sf.evaluation.source import read_source

    benchmarks = suite(p.suite)
    attention = resolve(p.checkpoint, p.method, p.value, p.inference_p)
    matching = p.match_ratio > 0 and attention.hyperparameter is not None
    if matching and p.value is not None:
        rule = "match_ratio searches the value itself"
        raise ConfigError("value", p.value, rule, "drop one of them, or set match_ratio to 0")
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
        device=p.device,
        dtype=p.dtype,
        batch_size=p.evaluate_batch,
        image_min_pixels=p.image_min_pixels,
        image_max_pixels=p.image_max_pixels,
        video_min_pixels=p.video_min_pixels,
        video_max_pixels=p.video_max_pixels,
        video_max_frames=p.video_max_frames,
        video_fps=p.video_fps,
        records=str(job.state / "records"),
    )
    if matching:
        lm.set_value(agreed(_match(p, job, lm) if rank() == 0 else None))
    results = evaluate_benchmarks(
        lm,
        benchmarks,
        source.home_path(p.benchmarks),
        job.state,
        limit=source.limit,
        most_new_tokens=source.most_new_tokens,
        seed=p.seed,
        unreadable=source.unreadable,
    )
    if rank():
        return
    figures = write_results(job.out, results, lm, seed=p.seed, model=p.model, system=p.system)
    job.tracker.summary(figures)


def _match(p: Parameters, job: Job, lm: SparseChatModel) -> float:
    """The hyperparameter's value for `match_ratio`; its tables are written."""
    from sf.data.manifest import read_manifest
    from sf.evaluation.answer import Answer
    from sf.evaluation.match_token_ratio import match_method, match_table
    from sf.evaluation.resumable_log import ResumableLog
    from sf.tables import write_csv

    match, probes = match_method(
        lm.model,
        lm.processor,
        read_manifest(p.data / "calibration.parquet"),
        p,
        lm.method,
        p.match_ratio,
        ResumableLog(Answer, job.state / "match.jsonl"),
        tolerance=p.match_tolerance,
        batch=p.evaluate_batch,
        max_new_tokens=p.max_completion_tokens,
        template=p.prompt_template,
        cutoff=p.correctness_cutoff,
    )
    write_csv(match_table(lm.method, match, probes), job.out / "tables" / "matched.csv")
    write_csv(probes, job.out / "tables" / "match_probes.csv")
    return match.value
