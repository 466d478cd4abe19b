"""A benchmark: lmms-eval tasks, and how their scores combine to one score in a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Benchmark", "Kind", "Task", "one"]

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class Task:
    """One lmms-eval task.

    Attributes:
        name: lmms-eval's task name.
        config: its YAML, relative to `lmms_eval/tasks`.
        metrics: the metric keys whose sum is this task's score.
        repository: the dataset's repository on the Hugging Face hub.
        subset: the dataset configuration ('' for the only one).
        split: the evaluated split.
        max_new_tokens: pinned generation limit, equal to the task's if it sets one. Without a
            limit the model class decides, and the classes differ (128 or 32768).
        media: the folder under HF_HOME where lmms-eval expects videos ('' for image tasks, whose
            images are in the parquet files).
        media_folders: folders in it without which lmms-eval would continue with other prompts.
        even: documents come in pairs that are scored together (MME).
        total: the fixed number of samples that the aggregate divides by (0 for the number
            evaluated); the paper's scale refers to it.
    """

    name: str
    config: str
    metrics: tuple[str, ...]
    repository: str
    split: str
    max_new_tokens: int
    subset: str = ""
    media: str = ""
    media_folders: tuple[str, ...] = ()
    even: bool = False
    total: int = 0


@dataclass(frozen=True)
class Benchmark:
    """One score of a table.

    Attributes:
        name: the metric name of `published_results.csv`.
        title: name in tables.
        kind: table 1 (image) or table 2 (video).
        tasks: several are averaged with equal weight.
        factor: from lmms-eval's scale to the paper's.
        scale: the best possible score in the paper's scale.
        download_gib: size of the hub's files, including media: an order-of-magnitude estimate, not
            checked against the hub.
        judge: the effect of a configured OpenAI-compatible judge; '' for none.
        parser_changed: whether its parser changed between the paper and lmms-eval 0.7.3.
        text_heavy: its questions are about text in the images (OCR).
    """

    name: str
    title: str
    kind: Kind
    tasks: tuple[Task, ...]
    factor: float
    scale: float
    download_gib: float
    judge: str = ""
    parser_changed: bool = False
    text_heavy: bool = False


def one(
    name: str,
    title: str,
    kind: Kind,
    task: Task,
    factor: float,
    download_gib: float,
    scale: float = 100.0,
    *,
    parser_changed: bool = False,
    text_heavy: bool = False,
) -> Benchmark:
    """A benchmark of one task."""
    return Benchmark(
        name,
        title,
        kind,
        (task,),
        factor,
        scale,
        download_gib,
        parser_changed=parser_changed,
        text_heavy=text_heavy,
    )
