"""Damaged files and rows through the loaders of the evaluation: a part of `mutation_run`."""

from __future__ import annotations

import random
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from decoded_again import VISION
from loaded_again import loaded_to_ask
from mutations import mutated

from sf.data.media import num_decoders
from sf.errors import DataError, EvaluationFailed
from sf.evaluation.benchmarks import BENCHMARKS, Benchmark, benchmark_named
from sf.evaluation.source import BenchmarkSource, prepare_source
from sf.isolation import Lost, run_isolated

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from scripted import Scripted

__all__ = ["STAND_INS", "damaged_rows", "damaged_tables", "loaders_agree", "read_by_other_loaders"]

STAND_INS = [col for col in BENCHMARKS if col.name in ("mmstar", "ocrbench", "videomme_w_subtitle")]
STAND_INS += [benchmark_named(n) for n in ("chartqa", "egoschema", "mmmu_pro", "tempcompass")]
TEXTS = ("", " ", "\x00", "(", "['a', ", "<|image_pad|>", "<|im_end|>\n", "\u202e", "Ω", "A" * 9999)


def tables(home: Path, benchmark: Benchmark) -> list[tuple[str, Path]]:
    """The tasks of a benchmark and their tables."""
    files = []
    for task in benchmark.tasks:
        folder = home / "hub" / task.repository / (task.subset or "data")
        files.append((task.name, next(folder.glob(f"{task.split}-*.parquet"))))
    return files


def prepared(home: Path, names: Sequence[str], work: Path) -> BenchmarkSource:
    """The source that the `benchmarks` stage prepares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepare_source(str(home), 0, 0, names, VISION, work, work)[0]


def answered(home: Path, source: BenchmarkSource, names: Sequence[str], work: Path) -> list[str]:
    """Evaluate the remaining rows with replies of one letter; returns the failures."""
    from sf.evaluation.run import evaluate_benchmarks

    replies = {task.name: ["A"] * 999 for name in names for task in benchmark_named(name).tasks}
    benchmarks = [benchmark_named(name) for name in names]
    model: Any = Scripted(replies)
    try:
        evaluate_benchmarks(model, benchmarks, home, work, unreadable=source.unreadable)
    except EvaluationFailed as failed:
        return [f"{error!r} {error.__notes__}" for error in failed.exceptions]
    return []


def _other(value: Any, kind: pa.DataType, rng: random.Random) -> Any:
    """A value of the same type that no benchmark contains."""
    if rng.random() < 0.3:
        return None
    if pa.types.is_struct(kind):  # an image
        content = value["bytes"] if value else b""
        return rng.choice(
            (
                {"bytes": b"", "path": None},
                {"bytes": None, "path": None},
                {"bytes": None, "path": "nowhere/x.png"},
                {"bytes": content[: len(content) // 2], "path": "x.png"},
            )
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return rng.choice(([], [None], (value or [])[:1]))
    if pa.types.is_integer(kind):
        return rng.choice((-1, 0, 2**31 - 1))
    if pa.types.is_floating(kind):
        return rng.choice((float("nan"), float("inf"), -1.0))
    if pa.types.is_boolean(kind):
        return not value
    return rng.choice(TEXTS)


def damaged_rows(home: Path, number: int, count: int, work: Path) -> list[str]:
    """Rows of a few benchmarks with one wrong cell each; returns faults in their treatment.

    A damaged row is used or named; an undamaged row is used; the remaining rows can be evaluated.
    """
    rng, violations = random.Random(f"rows {number}"), []
    chosen = rng.sample(STAND_INS, 2)
    copy = Path(shutil.copytree(home, work / "rows"))
    changed: dict[str, dict[int, str]] = {}
    for benchmark in chosen:
        for task, path in tables(copy, benchmark):
            table = pq.read_table(path)
            rows = table.take([at % len(table) for at in range(count)])
            columns = {name: rows.column(name).to_pylist() for name in rows.column_names}
            for at in rng.sample(range(count), count // 2):
                name = rng.choice(rows.column_names)
                columns[name][at] = _other(columns[name][at], rows.schema.field(name).type, rng)
                changed.setdefault(task, {})[at] = f"{name} = {str(columns[name][at])[:60]!r}"
            arrays = [pa.array(columns[f.name], f.type) for f in rows.schema]
            pq.write_table(pa.Table.from_arrays(arrays, schema=rows.schema), path)
    for name in [benchmark.name for benchmark in chosen]:
        try:
            source = prepared(copy, [name], work / f"rows of {name}")
        except DataError as error:  # a name of a video that is not there is a missing video
            if "none of its rows" not in str(error) and " videos of " not in str(error):
                violations.append(f"rows: {name} is refused: {error}")
            continue
        for task in (task.name for task in benchmark_named(name).tasks):
            bad = source.unreadable.get(task, {})
            beside = {at: bad[at] for at in bad.keys() - changed.get(task, {}).keys()}
            violations += [
                f"rows: {task} row {at} is whole, but: {why}" for at, why in beside.items()
            ]
        for fault in answered(copy, source, [name], work / f"rows of {name}"):
            used = {t: {a: w for a, w in c.items() if a not in source.unreadable.get(t, {})}
                    for t, c in changed.items()}  # fmt: skip
            violations.append(
                f"rows: {name} cannot be evaluated: {fault}; changed and used: {used}"
            )
    shutil.rmtree(copy)
    return violations


def damaged_tables(home: Path, number: int, count: int, work: Path) -> list[str]:
    """Tables of damaged bytes are read or refused by name; returns faults in their treatment."""
    rng, violations = random.Random(f"tables {number}"), []
    for index in range(count):
        benchmark = rng.choice([b for b in STAND_INS if b.kind == "image"])
        copy = Path(shutil.copytree(home, work / f"table{index}"))
        _, path = rng.choice(tables(copy, benchmark))
        damaged = mutated((path.name, "parquet", path.read_bytes()), rng)
        path.write_bytes(damaged.content)
        try:
            source = prepared(copy, [benchmark.name], work / f"source{index}")
        except DataError as error:
            if damaged.kind == "whole":
                violations.append(f"table {index}: a whole file is refused: {error}")
            elif benchmark.name not in str(error) and path.name not in str(error):
                violations.append(f"table {index}: the refusal names no file: {error}")
        else:
            faults = answered(copy, source, [benchmark.name], work / f"source{index}")
            violations += [f"table {index} {damaged.kind}: {fault}" for fault in faults]
        shutil.rmtree(copy)
    return violations


def _replace_column(home: Path, name: str, column: str, values: Sequence[Any]) -> None:
    """Repeat the rows of a benchmark's table, with these values in a column."""
    ((_, file),) = tables(home, benchmark_named(name))
    table = pq.read_table(file)
    rows = table.take([at % len(table) for at in range(len(values))])
    place, kind = rows.column_names.index(column), rows.schema.field(column)
    pq.write_table(rows.set_column(place, kind, pa.array(values, kind.type)), file)


def loaders_agree(
    home: Path, pictures: Sequence[bytes], clips: Sequence[Path], work: Path
) -> tuple[set[int], set[int]]:
    """Images in ChartQA's table and videos of EgoSchema.

    Returns:
        Numbers of the images, and of the videos, that the evaluation leaves out; the others were
        loaded as an evaluation loads them.
    """
    from sf.data.images import load_rgb
    from sf.data.video import load_video
    from sf.evaluation.readable import leave_out
    from sf.evaluation.tasks import benchmark_home, build_task, documents

    copy = Path(shutil.copytree(home, work / "home"))
    if pictures:
        values = [{"bytes": content, "path": None} for content in pictures]
        _replace_column(copy, "chartqa", "image", values)
    if clips:
        names = [f"clip{at}" for at in range(len(clips))]
        _replace_column(copy, "egoschema", "video_idx", names)
    for at, clip in enumerate(clips):
        shutil.copy(clip, copy / f"egoschema/videos/clip{at}.mp4")
    left_out: list[set[int]] = []
    for name in ("chartqa", "egoschema"):
        if not (pictures if name == "chartqa" else clips):
            left_out.append(set())
            continue
        source = prepared(copy, [name], work / f"media of {name}")
        task = benchmark_named(name).tasks[0]
        left_out.append(set(source.unreadable.get(task.name, {})))
        with benchmark_home(copy, work):
            lmms_task = build_task(task, copy)
            leave_out(lmms_task, task, source.unreadable.get(task.name, ()))
            for _, turns in documents(lmms_task):
                for part in turns[0]["content"]:
                    if part["type"] == "image":
                        load_rgb({"image": part["url"]})
                    elif part["type"] == "video":
                        load_video(part["url"], VISION)
    shutil.rmtree(copy)
    return left_out[0], left_out[1]


def read_by_other_loaders(media: Sequence[tuple[str, str]]) -> list[tuple[int, str]]:
    """Images and videos through `sf ask` and through qwen-vl-utils.

    Args:
        media: paths, with "image" or "video".

    Returns:
        Numbers of the media, and what is wrong with their treatment.
    """
    from sf.ask.media import bounds, check_decodable
    from sf.evaluation.media import decord_faults

    violations: list[tuple[int, str]] = []
    accepted = []
    for at, (path, kind) in enumerate(media):
        try:
            check_decodable(kind, path, bounds(kind))  # type: ignore[arg-type]
            accepted.append(at)
        except DataError:
            continue
    calls = [media[at] for at in accepted]
    workers = num_decoders()
    for at, fault in run_isolated(loaded_to_ask, calls, [120.0] * len(calls), workers=workers):
        if fault:
            words = fault.reason if isinstance(fault, Lost) else fault
            violations.append((accepted[at], f"sf ask accepts it, but: {words}"))
    talks = [[{"role": "user", "content": [{"type": kind, "path": p}]}] for p, kind in media]
    decord_faults(talks, VISION)  # does not raise
    return violations
