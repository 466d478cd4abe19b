"""Stage `evaluate`: one checkpoint with one attention method on a suite of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sf.config import Evaluate, Method, Runtime, Suite, Vision

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Vision, Runtime, Evaluate):
    """One job.

    Attributes:
        model: name of the base model.
        system: what the row is called: the method, or the objective that the checkpoint was
            trained with.
        method: attention method (a key of `sf.baselines.METHODS`).
        value: of the method's knob. By default `inference_p` for zipvl, which trained models run
            under, else the method's own default.
        suite: a column's name, or "image", "video", "all".
        seed: of the bootstrap and of the parsers' random guesses.
        checkpoint: folder of the model.
        benchmarks: result of the `benchmarks` stage.
    """

    model: str
    system: str
    method: Method
    value: float | None = None
    suite: Suite
    seed: int
    checkpoint: Path
    benchmarks: Path
    output: Path


def run(p: Parameters, job: Job) -> None:
    """Evaluate the suite with lmms-eval's own prompts, parsers and aggregation.

    Writes `results.json`, `samples.jsonl`, `tables/scores.csv` (a line per column),
    `tables/tasks.csv` (lmms-eval's own metrics) and `tables/layers.csv` (token ratio by layer).
    Replies are kept in `job.state`: a killed run goes on with the next batch. A benchmark that
    fails is reported after the others were tried, and the stage ends without a result.

    Raises:
        ConfigError: an unknown suite or method, a value out of its range.
        DataError: the benchmarks' data are not there.
        EvaluationFailed: some benchmarks failed.
    """
    from sf.baselines import build
    from sf.evaluation.columns import suite
    from sf.evaluation.source import read_source

    columns = suite(p.suite)
    value = p.inference_p if p.value is None and p.method == "zipvl" else p.value
    build(p.method, value)
    source = read_source(p.benchmarks)

    from sf.evaluation.model import SparseChatModel
    from sf.evaluation.run import evaluate_columns
    from sf.evaluation.tables import write_results
    from sf.provenance import input_digest

    lm = SparseChatModel(
        str(p.checkpoint),
        method=p.method,
        value=value,
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
    results = evaluate_columns(
        lm,
        columns,
        source.home_path(p.benchmarks),
        job.state,
        limit=source.limit,
        most_new_tokens=source.most_new_tokens,
        seed=p.seed,
    )
    figures = write_results(job.out, results, lm, seed=p.seed, model=p.model, system=p.system)
    job.tracker.summary(figures)
