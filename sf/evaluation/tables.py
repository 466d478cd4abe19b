"""The result files of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sf.atomic_files import write_text
from sf.evaluation.aggregate import benchmark_draws, benchmark_score
from sf.evaluation.intervals import bootstrap_mean, interval
from sf.evaluation.run import BenchmarkResult, Sample
from sf.json_lines import write_json_lines
from sf.tables import write_csv

if TYPE_CHECKING:
    from sf.evaluation.model import SparseChatModel

__all__ = ["layers_table", "sample_lines", "scores_table", "tasks_table", "write_results"]


def _all(result: BenchmarkResult) -> list[Sample]:
    return [sample for samples in result.samples.values() for sample in samples]


def scores_table(results: Sequence[BenchmarkResult], seed: int) -> pd.DataFrame:
    """One line per benchmark.

    Columns: benchmark, title, kind, score, low, high (bootstrap 95 %, in the paper's scale), scale
    (the best possible score), samples, token_ratio, token_ratio_low, token_ratio_high (mean over
    samples, each the mean over layers), prompt_tokens, new_tokens, kv_bytes (means per sample),
    unmatched (replies for which a judge would have been called), judge.
    """
    lines = []
    for result in results:
        benchmark, samples = result.benchmark, _all(result)
        low, high = interval(benchmark_draws(benchmark, result.scores, seed))
        ratios = [sample.record.token_ratio for sample in samples]
        ratio_low, ratio_high = bootstrap_mean(ratios, seed)
        lines.append(
            {
                "benchmark": benchmark.name,
                "title": benchmark.title,
                "kind": benchmark.kind,
                "score": benchmark_score(benchmark, result.scores),
                "low": low,
                "high": high,
                "scale": benchmark.scale,
                "samples": len(samples),
                "token_ratio": float(np.mean(ratios)),
                "token_ratio_low": ratio_low,
                "token_ratio_high": ratio_high,
                "prompt_tokens": float(np.mean([s.record.prompt_tokens for s in samples])),
                "new_tokens": float(np.mean([s.record.new_tokens for s in samples])),
                "kv_bytes": float(np.mean([s.record.kv_bytes for s in samples])),
                "unmatched": sum(not sample.score.matched for sample in samples),
                "judge": benchmark.judge,
            }
        )
    return pd.DataFrame(lines)


def tasks_table(results: Sequence[BenchmarkResult]) -> pd.DataFrame:
    """lmms-eval's own metrics in its own scale: benchmark, task, metric, value, samples."""
    return pd.DataFrame(
        {
            "benchmark": result.benchmark.name,
            "task": task,
            "metric": key,
            "value": value,
            "samples": len(result.samples[task]),
        }
        for result in results
        for task, metrics in result.metrics.items()
        for key, value in metrics.items()
    )


def layers_table(results: Sequence[BenchmarkResult]) -> pd.DataFrame:
    """Token ratio by layer: benchmark, layer (from 0), token_ratio (mean over samples)."""
    lines = []
    for result in results:
        ratios = np.array([sample.record.layer_ratios for sample in _all(result)])
        lines += [
            {"benchmark": result.benchmark.name, "layer": layer, "token_ratio": float(ratio)}
            for layer, ratio in enumerate(ratios.mean(axis=0))
        ]
    return pd.DataFrame(lines)


def sample_lines(results: Sequence[BenchmarkResult]) -> Iterator[dict[str, Any]]:
    """The lines of `samples.jsonl`: `Record`, target, score and the other fields of its score."""
    for sample in (sample for result in results for sample in _all(result)):
        score = asdict(sample.score)
        yield {
            "benchmark": sample.benchmark,
            **asdict(sample.record),
            "target": sample.target,
            "score": score.pop("value"),
            **score,
        }


def write_results(
    folder: Path,
    results: Sequence[BenchmarkResult],
    lm: SparseChatModel,
    *,
    seed: int,
    model: str,
    row: str,
) -> dict[str, float]:
    """Write all files of a complete evaluation, each atomically.

    Args:
        folder: the stage's result folder.
        results: of all benchmarks.
        lm: the model that answered.
        seed: of the bootstrap.
        model: name of the base model.
        row: its name in the tables.

    Returns:
        Each benchmark's score and token ratio, and the mean seconds a sample took.
    """
    scores = scores_table(results, seed)
    write_csv(scores, folder / "tables" / "scores.csv")
    write_csv(tasks_table(results), folder / "tables" / "tasks.csv")
    write_csv(layers_table(results), folder / "tables" / "layers.csv")
    write_json_lines(folder / "samples.jsonl", sample_lines(results))
    summary: dict[str, Any] = {
        "model": model,
        "row": row,
        "method": lm.method,
        "value": lm.value,
        "checkpoint": lm.checkpoint,
        "vision": lm.vision.model_dump(),
        "media": lm.media,
        "batch": lm.batch_size,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "lmms_eval": version("lmms_eval"),
        "scores": json.loads(scores.to_json(orient="records")),
    }
    write_text(folder / "results.json", json.dumps(summary, indent=1) + "\n")
    samples = [sample for result in results for sample in _all(result)]
    figures = {"seconds_per_sample": float(np.mean([s.record.seconds for s in samples]))}
    for line in summary["scores"]:
        figures[line["benchmark"]] = line["score"]
        figures[f"{line['benchmark']}_token_ratio"] = line["token_ratio"]
    return figures
