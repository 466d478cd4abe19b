"""The readable rows of a benchmark; unreadable rows are excluded.

Every image and video is opened once before any model is loaded, in worker processes
(`sf.isolation`): a damaged file costs only its row, with a reason. Images inside a
table are decoded by the project's loader (`sf.data.images`), not by that of `datasets`.
"""

from __future__ import annotations

import inspect
import io
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sf.data.check import TIME_LIMIT_S, MediaLog, check_media
from sf.data.control_tokens import QWEN
from sf.data.images import as_rgb, decode_image
from sf.data.media import num_decoders, open_media
from sf.errors import DataError
from sf.evaluation.benchmarks import Task
from sf.evaluation.table_rows import MOST, each_row
from sf.extras import extra
from sf.isolation import Lost, run_isolated

with extra("eval"):
    from datasets import Image, List

if TYPE_CHECKING:
    import PIL.Image
    from datasets import Dataset

    from sf.sections import Vision

__all__ = [
    "LoadedImage",
    "decode_by_loader",
    "evaluated_rows",
    "images_unseen",
    "leave_out",
    "picture_content",
    "unreadable_rows",
]

_ROWS = 64  # rows whose images are in memory at once


class LoadedImage(Image):
    """The images of a column, decoded by `sf.data.images`."""

    def decode_example(
        self, value: Any, token_per_repo_id: dict[str, str | bool | None] | None = None
    ) -> PIL.Image.Image:
        if not isinstance(value, dict):
            return as_rgb(value)
        name = value["path"] or "an image of a table"
        return decode_image(io.BytesIO(picture_content(value)), name)[0]


class BlankImage(Image):
    """The images of a column, not decoded."""

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> PIL.Image.Image:
        import PIL.Image

        return PIL.Image.new("RGB", (28, 28))


def picture_content(value: dict[str, Any]) -> bytes:
    """The bytes of an image in a table.

    Args:
        value: the cell: bytes, or the path of a separate file.

    Raises:
        DataError: it contains neither, or the file cannot be read.
    """
    content: bytes | None = value["bytes"]
    if content is not None:
        return content
    if value["path"] is None:
        raise DataError("image", None, "its cell holds neither bytes nor a path", "drop the row")
    with open_media(value["path"]) as stream:
        return stream.read()


def _as(feature: Any, make: Callable[[], Image]) -> Any:
    """A feature with its images replaced; None if it has none."""
    if isinstance(feature, Image):
        return make()
    if isinstance(feature, List) and isinstance(feature.feature, Image):
        return List(make(), length=feature.length)
    return None


def _cast(dataset: Dataset, make: Callable[[], Image]) -> tuple[Dataset, list[str]]:
    """A dataset with another image class, and its columns with images."""
    pictures = {name: _as(feature, make) for name, feature in dataset.features.items()}
    pictures = {name: feature for name, feature in pictures.items() if feature is not None}
    for name, feature in pictures.items():
        dataset = dataset.cast_column(name, feature)
    return dataset, list(pictures)


@contextmanager
def images_unseen() -> Iterator[None]:
    """A context in which every image in a table is blank.

    lmms-eval decodes a task's first row for its columns, and a damaged image would end the task.
    """
    decode = Image.decode_example
    Image.decode_example = BlankImage.decode_example
    try:
        yield
    finally:
        Image.decode_example = decode


def decode_by_loader(lmms_task: Any) -> None:
    """Make a task's images upright 8-bit sRGB, as in training."""
    for splits in _tables(lmms_task):
        for split in splits:
            splits[split], _ = _cast(splits[split], LoadedImage)
    lmms_task.task_docs = lmms_task.eval_docs


def _tables(lmms_task: Any) -> list[Any]:
    """A task's rows, and its rows without images if they differ."""
    same = lmms_task.dataset_no_image is lmms_task.dataset
    return [lmms_task.dataset] if same else [lmms_task.dataset, lmms_task.dataset_no_image]


def unreadable_rows(
    lmms_task: Any, task: Task, vision: Vision, log: MediaLog, limit: int = 0
) -> dict[int, str]:
    """Rows with unusable text, images or videos, with the reason.

    Args:
        lmms_task: from `sf.evaluation.tasks.build_task`; its videos must exist.
        task: the task.
        vision: pixel and frame bounds of the evaluation.
        log: facts about videos from earlier calls.
        limit: number of first rows to check; 0 for all.
    """
    count = min(limit or len(lmms_task.eval_docs), len(lmms_task.eval_docs))
    rows = lmms_task.dataset[task.split].select(range(count))
    bad = dict(_bad_pictures(rows, vision))
    videos: dict[int, list[str]] = {}
    scores: dict[int, dict[str, Any]] = {}
    for number, row in each_row(_cast(rows, BlankImage)[0]):
        if isinstance(row, str):
            bad.setdefault(number, row)
            continue
        try:
            text, visuals, scores[number] = _used(lmms_task, row)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - lmms-eval expects good rows
            reason = f"its task cannot use it ({type(error).__name__}: {str(error)[:MOST]})"
            bad.setdefault(number, reason)
            continue
        if control := QWEN.search(text):
            bad.setdefault(number, f"its text holds {control.group()}, a control token of models")
        videos[number] = [path for path in visuals if isinstance(path, str)]
    for number, reason in _unscorable(lmms_task, scores):
        bad.setdefault(number, reason)
    pairs = [(path, "video") for paths in videos.values() for path in paths]
    facts = check_media(Path("/"), pairs, [vision], log, num_decoders()) if pairs else {}
    for number, paths in videos.items():
        for path in paths:
            if facts[path, "video"].error:
                bad.setdefault(number, f"{path}: {facts[path, 'video'].error}")
    return dict(sorted(bad.items()))


def _used(lmms_task: Any, row: dict[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """A row's prompt, media and score, produced by lmms-eval as in an evaluation."""
    lmms_task.doc_to_target(row)
    scores = lmms_task.process_results(row, ["A"])
    lmms_task.doc_to_messages(row)
    return str(lmms_task.doc_to_text(row)), lmms_task.doc_to_visual(row), scores


def _unscorable(lmms_task: Any, scores: Mapping[int, dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """Rows with a category unknown to lmms-eval's aggregation."""
    for metric, aggregate in lmms_task.aggregation().items():
        values = {number: row[metric] for number, row in scores.items() if metric in row}
        if values and _unknown(aggregate, list(values.values())):
            for number, value in values.items():
                category = _unknown(aggregate, [value])
                if category:
                    yield number, f"its task cannot score it (KeyError: {category})"


def _unknown(aggregate: Callable[..., Any], values: list[Any]) -> str:
    """The category unknown to an aggregation; the aggregation's report is discarded."""
    from loguru import logger

    logger.disable("")
    try:
        with redirect_stdout(io.StringIO()), TemporaryDirectory() as folder:
            wants = "args" in inspect.signature(aggregate).parameters  # to write a report
            aggregate(values, **({"args": Namespace(output_path=folder)} if wants else {}))
    except KeyError as error:
        return str(error)[:MOST]
    except Exception:  # noqa: BLE001 - of some rows only, without the tools of a whole evaluation
        return ""
    finally:
        logger.enable("")
    return ""


def _bad_pictures(dataset: Dataset, vision: Vision) -> Iterator[tuple[int, str]]:
    from sf.data.inspection import inspect_picture

    raw, names = _cast(dataset, lambda: Image(decode=False))
    raw = raw.select_columns(names)
    for start in range(0, len(raw) if names else 0, _ROWS):
        numbers, calls = [], []
        for at, row in each_row(raw.select(range(start, min(start + _ROWS, len(raw))))):
            number = start + at
            if isinstance(row, str):
                yield number, row
                continue
            for name, value in row.items():
                for picture in value if isinstance(value, list) else [value]:
                    if picture is None:
                        continue
                    try:
                        calls.append((picture_content(picture), name, vision))
                        numbers.append(number)
                    except DataError as error:
                        yield number, f"{name}: {error.rule}"
        limits = [TIME_LIMIT_S] * len(calls)
        for at, reason in run_isolated(inspect_picture, calls, limits, workers=num_decoders()):
            rule = reason.reason if isinstance(reason, Lost) else reason
            if rule:
                yield numbers[at], f"{calls[at][1]}: {rule}"


def evaluated_rows(task: Task, count: int, bad: Collection[int], limit: int = 0) -> list[int]:
    """Numbers of the evaluated rows: the first ones, in complete pairs if a task has pairs.

    Args:
        task: which task.
        count: number of its rows.
        bad: numbers of its unreadable rows.
        limit: number of first rows to keep; 0 for all.
    """
    count = min(limit or count, count)
    if task.even:
        count, bad = count - count % 2, {number ^ pair for number in bad for pair in (0, 1)}
    return [number for number in range(count) if number not in bad]


def leave_out(lmms_task: Any, task: Task, rows: Collection[int], limit: int = 0) -> None:
    """Keep a task's evaluated rows (`evaluated_rows`).

    Args:
        lmms_task: of `sf.evaluation.tasks.build_task`.
        task: which task.
        rows: numbers of the excluded rows.
        limit: first rows that are kept; 0 for all.

    Raises:
        DataError: no row remains.
    """
    kept = evaluated_rows(task, len(lmms_task.eval_docs), rows, limit)
    if not kept:
        raise DataError(task.name, task.split, "none of its rows can be read", "fetch it again")
    for splits in _tables(lmms_task):
        splits[task.split] = splits[task.split].select(kept)
    lmms_task.task_docs = lmms_task.eval_docs
