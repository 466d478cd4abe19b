"""Evaluates benchmarks with lmms-eval: replies, its scores, and each sample's share of them.

Benchmarks run sequentially in one process, which starts up only once; a failed benchmark does not
affect the others. Under torchrun every process answers its share of the rows and the first one
scores them all. lmms-eval's `evaluate` does the work (requests, filters, `process_results`,
aggregation); replies come from `SparseChatModel`, which stores them, so a second call resumes
where the first one was killed.
"""

from __future__ import annotations

import errno
import math
import random
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sf.errors import DataError, EnvironmentFault, EvaluationFailed, SparsityForcingError
from sf.escaping import printable
from sf.evaluation.aggregate import task_score
from sf.evaluation.benchmarks import Benchmark, Task
from sf.evaluation.rank_sync import AllFailed, answering_together, together
from sf.evaluation.readable import leave_out
from sf.evaluation.scoring import SampleScore, sample_score
from sf.evaluation.tasks import benchmark_home, build_task
from sf.extras import extra
from sf.ranks import gathered, join, rank, world_size
from sf.redaction import RedactedStream, redact

if TYPE_CHECKING:
    from sf.evaluation.model import SparseChatModel
    from sf.evaluation.records import Record

__all__ = ["BenchmarkResult", "Sample", "evaluate_benchmarks"]

_AGREEMENT = 1e-4  # lmms-eval rounds some accuracies to five decimals


@dataclass(frozen=True)
class Sample:
    """One answered question, with its score and its cost."""

    benchmark: str
    target: str
    score: SampleScore
    record: Record


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark, complete.

    Attributes:
        benchmark: the benchmark.
        metrics: for each task, lmms-eval's aggregated metrics by key, in its scale.
        samples: for each task, its samples in data order.
    """

    benchmark: Benchmark
    metrics: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Sequence[Sample]]

    @property
    def scores(self) -> dict[str, list[SampleScore]]:
        """For each task, its samples' scores."""
        return {task: [s.score for s in samples] for task, samples in self.samples.items()}


@dataclass
class _Session:
    """The state shared by all benchmarks of a run."""

    lm: SparseChatModel
    home: Path
    work: Path
    limit: int
    most_new_tokens: int
    seed: int
    unreadable: Mapping[str, Mapping[int, str]]
    failures: list[Exception] = field(default_factory=list)

    @property
    def unforeseen(self) -> Path:
        """The log for tracebacks of failures that no input explains."""
        return self.work / f"failures{rank()}.log"


def evaluate_benchmarks(
    lm: SparseChatModel,
    benchmarks: Sequence[Benchmark],
    home: Path,
    work: Path,
    *,
    limit: int = 0,
    most_new_tokens: int = 0,
    seed: int = 0,
    unreadable: Mapping[str, Mapping[int, str]] | None = None,
) -> list[BenchmarkResult]:
    """Evaluate benchmarks sequentially.

    Args:
        lm: the model.
        benchmarks: the benchmarks to evaluate.
        home: a benchmark home (`sf.evaluation.tasks`).
        work: scratch folder for Arrow files, lmms-eval's output, and tracebacks of failures that
            no input explains; each process has its own logs.
        limit: most rows per task; 0 for all. MME uses an even number.
        most_new_tokens: upper bound of every task's generation limit; 0 for none.
        seed: of the parsers' random guesses.
        unreadable: excluded rows of each task (`sf.evaluation.readable`).

    Returns:
        The benchmarks' results, in order; empty on the other processes of torchrun.

    Raises:
        EvaluationFailed: one or more benchmarks failed, after all were tried; the model's records
            keep the replies.
        EnvironmentFault: the disk is full.
    """
    work.mkdir(parents=True, exist_ok=True)
    join()
    session = _Session(lm, home, work, limit, most_new_tokens, seed, unreadable or {})
    results = []
    with benchmark_home(home, work / "arrow"), _printing_to(work / f"lmms_eval{rank()}.log"):
        for benchmark in benchmarks:
            result = _guarded(session, benchmark)
            if result is not None:
                results.append(result)
    if session.failures:
        remedy = "correct this and give the same command again: what was answered is kept"
        if session.unforeseen.is_file():
            remedy += f"; tracebacks of what was not foreseen: {session.unforeseen}"
        raise EvaluationFailed(session.failures, len(benchmarks), remedy) from session.failures[0]
    return [] if rank() else results


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Redirect lmms-eval's output and logs, with every category of every benchmark, to a file."""
    with extra("eval"):
        from lmms_eval import evaluator
        from lmms_eval.api import task

    with (
        path.open("a", encoding="utf-8") as file,
        redirect_stdout(RedactedStream(file)) as masked,
        _logging_to(masked),
    ):
        bars = {module: module.tqdm for module in (evaluator, task)}
        for module, bar in bars.items():
            module.tqdm = partial(bar, file=file)
        try:
            yield
        finally:
            for module, bar in bars.items():
                module.tqdm = bar


@contextmanager
def _logging_to(file: RedactedStream) -> Iterator[None]:
    """Redirect loguru's messages to a file, and restore the previous handlers afterwards.

    A handler removed by `logger.remove` could not be added again.
    """
    from loguru import logger

    core: Any = logger._core  # type: ignore[attr-defined]
    handlers, min_level = core.handlers, core.min_level
    core.handlers, core.min_level = {}, math.inf
    try:
        own = logger.add(file, level="INFO")
        try:
            yield
        finally:
            logger.remove(own)
    finally:
        core.handlers, core.min_level = handlers, min_level


def _guarded(session: _Session, benchmark: Benchmark) -> BenchmarkResult | None:
    """A benchmark's result; a failure is recorded and raised after the others were tried."""
    try:
        return _evaluate_benchmark(session, benchmark)
    except AllFailed as failed:
        error = failed.failure
    except Exception as alone:
        if world_size() > 1:  # the others wait for this process inside lmms-eval
            raise
        error = alone
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        rule, remedy = "is full", "free some space and call again: finished replies are kept"
        raise EnvironmentFault("disk", str(session.work), rule, remedy) from error
    _note_failure(session, benchmark, error)
    return None


def _note_failure(session: _Session, benchmark: Benchmark, error: Exception) -> None:
    """Keep an error for the end, and its traceback if bad input does not explain it."""
    error.add_note(f"in benchmark {benchmark.name}")
    if not isinstance(error, SparsityForcingError):
        with session.unforeseen.open("a", encoding="utf-8") as file:
            file.write(printable(redact("".join(traceback.format_exception(error)))))
    session.failures.append(error)


def _all_records(local: list[Record]) -> list[Record]:
    """The records of all processes, in data order.

    Ranks with fewer rows repeat their last one; each row counts once.
    """
    merged = {record.doc_id: record for records in gathered(local) for record in records}
    return [record for _, record in sorted(merged.items())]


def _evaluate_benchmark(session: _Session, benchmark: Benchmark) -> BenchmarkResult:
    metrics: dict[str, dict[str, float]] = {}
    samples: dict[str, list[Sample]] = {}
    for task in benchmark.tasks:
        metrics[task.name], samples[task.name] = _evaluate_task(session, benchmark, task)
    return BenchmarkResult(benchmark, metrics, samples)


def _evaluate_task(
    session: _Session, benchmark: Benchmark, task: Task
) -> tuple[dict[str, float], list[Sample]]:
    import torch
    from lmms_eval.evaluator import evaluate

    for seed_all in (random.seed, np.random.seed, torch.manual_seed):
        seed_all(session.seed)
    lmms_task = together(task.name, lambda: _built(session, task))
    wanted = len(lmms_task.eval_docs)
    session.lm.task_dict[task.name] = lmms_task.dataset
    options = Namespace(
        output_path=str(session.work), process_with_media=False, reasoning_tags=None
    )
    with answering_together(session.lm, task.name):
        outcome = evaluate(
            lm=session.lm,
            task_dict={task.name: lmms_task},
            limit=wanted,
            bootstrap_iters=0,
            log_samples=True,
            cli_args=options,
            process_docs_parallel=1,
            distributed_executor_backend="torchrun" if world_size() > 1 else "accelerate",
        )
    records = _all_records(session.lm.answered(task.name))
    return together(
        task.name,
        lambda: (
            ({}, []) if rank() else _scored(benchmark, task, lmms_task, wanted, outcome, records)
        ),
    )


def _built(session: _Session, task: Task) -> Any:
    lmms_task = build_task(task, session.home, most_new_tokens=session.most_new_tokens)
    leave_out(lmms_task, task, session.unreadable.get(task.name, ()), session.limit)
    return lmms_task


def _scored(
    benchmark: Benchmark,
    task: Task,
    lmms_task: Any,
    wanted: int,
    outcome: Mapping[str, Any],
    records: Sequence[Record],
) -> tuple[dict[str, float], list[Sample]]:
    """lmms-eval's metrics of a task and its samples, checked for consistency."""
    logged = sorted(outcome["samples"][task.name], key=lambda sample: sample["doc_id"])
    _check_complete(task, wanted, logged, records)
    samples = [
        Sample(
            benchmark=benchmark.name,
            target=str(sample["target"]),
            score=sample_score(lmms_task, sample["doc"], sample),
            record=record,
        )
        for sample, record in zip(logged, records, strict=True)
    ]
    metrics = {
        key.removesuffix(",none"): value
        for key, value in outcome["results"][task.name].items()
        if key.endswith(",none") and "_stderr" not in key and isinstance(value, int | float)
    }
    _check_agreement(task, metrics, [sample.score for sample in samples])
    return metrics, samples


def _check_complete(
    task: Task, wanted: int, logged: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> None:
    """Check that every row was answered once and that the scored replies are the model's.

    lmms-eval pairs replies with requests up to the shorter list; a lost reply scores as ''.

    Raises:
        DataError: a row or a reply is missing.
    """
    scored = {sample["doc_id"]: sample["filtered_resps"] for sample in logged}
    replied = {record.doc_id: [record.reply] for record in records}
    if len(logged) != wanted or sorted(scored) != list(range(wanted)) or scored != replied:
        rule = f"{len(logged)} of {wanted} samples came back, or not with the model's replies"
        raise DataError(task.name, None, rule, "call again: finished replies are kept")


def _check_agreement(
    task: Task, metrics: Mapping[str, float], scores: Sequence[SampleScore]
) -> None:
    """Check that the samples' scores give lmms-eval's aggregate.

    Raises:
        DataError: they do not, because lmms-eval's aggregation differs from the one implemented.
    """
    aggregate, formed = sum(metrics[key] for key in task.metrics), task_score(task, scores)
    if abs(aggregate - formed) > _AGREEMENT * max(1.0, abs(aggregate)):
        rule = f"lmms-eval's aggregate is {aggregate}, the samples' scores give {formed}"
        raise DataError(
            task.name, None, rule, "use lmms-eval 0.7.3, or adapt sf.evaluation.scoring"
        )
