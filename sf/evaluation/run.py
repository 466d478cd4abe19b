"""Evaluates columns with lmms-eval: replies, its own scores, and each sample's share of them.

One benchmark after the other in one process: what starting costs is paid once, and a benchmark
that fails does not take the others with it. Under torchrun every process answers its share of the
rows and the first one scores them all. lmms-eval's `evaluate` does the work (requests,
filters, `process_results`, aggregation); replies come from `SparseChatModel`, which keeps them, so
a second call goes on where the first one was killed.
"""

from __future__ import annotations

import errno
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

__all__ = ["ColumnResult", "Sample", "evaluate_columns"]

_AGREEMENT = 1e-4  # lmms-eval rounds some accuracies to five decimals


@dataclass(frozen=True)
class Sample:
    """One answered question, with its score and its cost."""

    column: str
    target: str
    score: SampleScore
    record: Record


@dataclass(frozen=True)
class ColumnResult:
    """One benchmark, complete.

    Attributes:
        column: which.
        metrics: for each task, lmms-eval's aggregated metrics by key, in its scale.
        samples: for each task, its samples in the order of the data.
    """

    column: Benchmark
    metrics: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Sequence[Sample]]

    @property
    def scores(self) -> dict[str, list[SampleScore]]:
        """For each task, its samples' scores."""
        return {task: [s.score for s in samples] for task, samples in self.samples.items()}


@dataclass
class _Session:
    """What all benchmarks of a run share."""

    lm: SparseChatModel
    home: Path | None
    work: Path
    limit: int
    most_new_tokens: int
    seed: int
    unreadable: Mapping[str, Mapping[int, str]]
    failures: list[Exception] = field(default_factory=list)

    @property
    def unforeseen(self) -> Path:
        """Where the tracebacks of failures go that are nobody's input."""
        return self.work / f"failures{rank()}.log"


def evaluate_columns(
    lm: SparseChatModel,
    columns: Sequence[Benchmark],
    home: Path | None,
    work: Path,
    *,
    limit: int = 0,
    most_new_tokens: int = 0,
    seed: int = 0,
    unreadable: Mapping[str, Mapping[int, str]] | None = None,
) -> list[ColumnResult]:
    """Evaluate benchmarks one after the other.

    Args:
        lm: the model.
        columns: which benchmarks.
        home: a benchmark home (`sf.evaluation.tasks`), or None for the hub.
        work: scratch: Arrow files, what lmms-eval prints, and tracebacks of failures that no
            input explains; each process has its own logs.
        limit: rows a task at most; 0 for all. MME takes an even number.
        most_new_tokens: upper bound of every task's generation limit; 0 for none.
        seed: of the parsers' random guesses.
        unreadable: rows of each task that are left out (`sf.evaluation.readable`).

    Returns:
        The benchmarks' results, in order; nothing on the further processes of torchrun.

    Raises:
        EvaluationFailed: one or more benchmarks failed, after all were tried; the replies that
            were given are kept by the model's records.
        EnvironmentFault: the disk is full.
    """
    work.mkdir(parents=True, exist_ok=True)
    join()
    session = _Session(lm, home, work, limit, most_new_tokens, seed, unreadable or {})
    results = []
    with benchmark_home(home, work / "arrow"), _printing_to(work / f"lmms_eval{rank()}.log"):
        for column in columns:
            result = _guarded(session, column)
            if result is not None:
                results.append(result)
    if session.failures:
        remedy = "correct this and give the same command again: what was answered is kept"
        if session.unforeseen.is_file():
            remedy += f"; tracebacks of what was not foreseen: {session.unforeseen}"
        raise EvaluationFailed(session.failures, len(columns), remedy) from session.failures[0]
    return [] if rank() else results


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """What lmms-eval prints, logs and draws goes to a file: every category of every benchmark."""
    with extra("eval"):
        from lmms_eval import evaluator
        from lmms_eval.api import task
        from loguru import logger

    logger.remove()
    with path.open("a", encoding="utf-8") as file, redirect_stdout(RedactedStream(file)) as masked:
        sink = logger.add(masked, level="INFO")
        bars = {module: module.tqdm for module in (evaluator, task)}
        for module, bar in bars.items():
            module.tqdm = partial(bar, file=file)
        try:
            yield
        finally:
            for module, bar in bars.items():
                module.tqdm = bar
            logger.remove(sink)


def _guarded(session: _Session, column: Benchmark) -> ColumnResult | None:
    """A benchmark's result; its failure is noted and raised after the others were tried."""
    try:
        return _evaluate_column(session, column)
    except AllFailed as failed:
        error = failed.failure
    except Exception as alone:
        if world_size() > 1:  # the others wait for this process inside lmms-eval
            raise
        error = alone
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        rule, remedy = "is full", "free some space and call again: finished replies are kept"
        raise EnvironmentFault("disk", str(session.work), rule, remedy) from error
    _note_failure(session, column, error)
    return None


def _note_failure(session: _Session, column: Benchmark, error: Exception) -> None:
    """Keep an error for the end, and the traceback of one that is no bad input."""
    error.add_note(f"in benchmark {column.name}")
    if not isinstance(error, SparsityForcingError):
        with session.unforeseen.open("a", encoding="utf-8") as file:
            file.write(printable(redact("".join(traceback.format_exception(error)))))
    session.failures.append(error)


def _all_records(own: list[Record]) -> list[Record]:
    """The records of all processes, in the order of the data.

    Ranks with fewer rows answer their last one again: each row counts once.
    """
    merged = {record.doc_id: record for records in gathered(own) for record in records}
    return [record for _, record in sorted(merged.items())]


def _evaluate_column(session: _Session, column: Benchmark) -> ColumnResult:
    metrics: dict[str, dict[str, float]] = {}
    samples: dict[str, list[Sample]] = {}
    for part in column.parts:
        metrics[part.task], samples[part.task] = _evaluate_part(session, column, part)
    return ColumnResult(column, metrics, samples)


def _evaluate_part(
    session: _Session, column: Benchmark, part: Task
) -> tuple[dict[str, float], list[Sample]]:
    import torch
    from lmms_eval.evaluator import evaluate

    for seed_all in (random.seed, np.random.seed, torch.manual_seed):
        seed_all(session.seed)
    task = together(part.task, lambda: _built(session, part))
    wanted = len(task.eval_docs)
    session.lm.task_dict[part.task] = task.dataset
    options = Namespace(
        output_path=str(session.work), process_with_media=False, reasoning_tags=None
    )
    with answering_together(session.lm, part.task):
        found = evaluate(
            lm=session.lm,
            task_dict={part.task: task},
            limit=wanted,
            bootstrap_iters=0,
            log_samples=True,
            cli_args=options,
            process_docs_parallel=1,
            distributed_executor_backend="torchrun" if world_size() > 1 else "accelerate",
        )
    records = _all_records(session.lm.answered(part.task))
    return together(
        part.task,
        lambda: ({}, []) if rank() else _scored(column, part, task, wanted, found, records),
    )


def _built(session: _Session, part: Task) -> Any:
    task = build_task(part, session.home, most_new_tokens=session.most_new_tokens)
    leave_out(task, part, session.unreadable.get(part.task, ()), session.limit)
    return task


def _scored(
    column: Benchmark,
    part: Task,
    task: Any,
    wanted: int,
    found: Mapping[str, Any],
    records: Sequence[Record],
) -> tuple[dict[str, float], list[Sample]]:
    """lmms-eval's metrics of a task, and its samples, once they are known to belong together."""
    logged = sorted(found["samples"][part.task], key=lambda sample: sample["doc_id"])
    _check_complete(part, wanted, logged, records)
    samples = [
        Sample(
            column=column.name,
            target=str(sample["target"]),
            score=sample_score(task, sample["doc"], sample),
            record=record,
        )
        for sample, record in zip(logged, records, strict=True)
    ]
    metrics = {
        key.removesuffix(",none"): value
        for key, value in found["results"][part.task].items()
        if key.endswith(",none") and "_stderr" not in key and isinstance(value, int | float)
    }
    _check_agreement(part, metrics, [sample.score for sample in samples])
    return metrics, samples


def _check_complete(
    part: Task, wanted: int, logged: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> None:
    """Every row was answered once, and what was scored is what the model said.

    lmms-eval pairs replies with requests as long as both last; a lost reply scores as ''.

    Raises:
        DataError: a row or a reply is missing.
    """
    scored = {sample["doc_id"]: sample["filtered_resps"] for sample in logged}
    said = {record.doc_id: [record.reply] for record in records}
    if len(logged) != wanted or sorted(scored) != list(range(wanted)) or scored != said:
        rule = f"{len(logged)} of {wanted} samples came back, or not with the model's replies"
        raise DataError(part.task, None, rule, "call again: finished replies are kept")


def _check_agreement(
    part: Task, metrics: Mapping[str, float], scores: Sequence[SampleScore]
) -> None:
    """The samples' scores must form lmms-eval's own number.

    Raises:
        DataError: they do not; lmms-eval's aggregation is not the one that intervals are made for.
    """
    theirs, ours = sum(metrics[key] for key in part.metrics), task_score(part, scores)
    if abs(theirs - ours) > _AGREEMENT * max(1.0, abs(theirs)):
        rule = f"lmms-eval's aggregate is {theirs}, the samples' scores give {ours}"
        raise DataError(
            part.task, None, rule, "use lmms-eval 0.7.3, or adapt sf.evaluation.scoring"
        )
