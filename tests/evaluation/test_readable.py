"""Damaged media in a benchmark cost their rows, which are named; the others are evaluated."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damaged_home import REPOSITORIES, change_column, damage
from scripted import VISION, Scripted

from sf.errors import DataError
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.run import evaluate_benchmarks
from sf.evaluation.source import prepare_source, read_source, source_table
from sf.evaluation.tasks import benchmark_home, build_task, documents


def evaluated(home: Path, names: list[str], replies: Any, work: Path, samples: int = 0) -> Any:
    """Run the `benchmarks` stage's part and the evaluation; returns source, table and results."""
    with pytest.warns(UserWarning, match="cannot be read and are left out"):
        source, rows = prepare_source(str(home), samples, 0, names, VISION, work, work)
    source.write(work)
    source = read_source(work)
    left = {
        task: [reply for at, reply in enumerate(given) if at not in source.unreadable.get(task, {})]
        for task, given in replies.items()
    }
    results = evaluate_benchmarks(
        Scripted(left),  # type: ignore[arg-type]
        [benchmark_named(name) for name in names],
        home,
        work,
        limit=source.limit,
        unreadable=source.unreadable,
    )
    return source, source_table(source, rows).set_index("benchmark"), results


@pytest.mark.parametrize("number", [0, 2])
def test_one_damaged_image_costs_one_row(copy, stand_ins, tmp_path, number) -> None:
    damage(copy, "chartqa", lambda content: content[: len(content) // 2], number)
    source, table, results = evaluated(copy, ["chartqa", "mmstar"], stand_ins[1], tmp_path)
    assert source.unreadable.keys() == {"chartqa"}
    (reason,) = source.unreadable["chartqa"].values()
    assert source.unreadable["chartqa"].keys() == {number}
    assert reason.startswith("image: it cannot be decoded")
    assert table.loc["chartqa", ["rows", "unreadable", "evaluated"]].tolist() == [4, 1, 3]
    assert table.loc["mmstar", ["rows", "unreadable", "evaluated"]].tolist() == [4, 0, 4]
    assert [len(result.samples[result.benchmark.tasks[0].name]) for result in results] == [3, 4]
    assert results[0].metrics["chartqa"]["relaxed_overall"] == 1.0


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("name", ["chartqa", "egoschema"])
def test_text_that_is_not_utf8_costs_one_row(copy, stand_ins, tmp_path, name, number) -> None:
    (file,) = (copy / "hub" / REPOSITORIES[name]).rglob("*.parquet")
    table = pq.read_table(file)
    texts = [text.encode() for text in table.column("question").to_pylist()]
    texts[number] = b"a\xff" + texts[number]
    place = table.column_names.index("question")
    undecodable = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(place, "question", undecodable), file)
    source, counts, _ = evaluated(copy, [name], stand_ins[1], tmp_path)
    ((task, bad),) = source.unreadable.items()
    assert bad.keys() == {number}, task
    assert "UnicodeDecodeError" in bad[number]
    assert counts.loc[name, "evaluated"] == len(texts) - 1


def test_a_damaged_image_of_a_pair_costs_the_pair(copy, stand_ins, tmp_path) -> None:
    damage(copy, "mme", lambda content: b"no image", 5)
    with pytest.warns(UserWarning, match=r"1 rows of mme.*\n  row 5: image: it is damaged"):
        source, rows = prepare_source(str(copy), 0, 0, ["mme"], VISION, tmp_path, tmp_path)
    table = source_table(source, rows)
    assert table["unreadable"].tolist() == [1]
    assert table["evaluated"].tolist() == [table["rows"][0] - 2]
    left = [reply for at, reply in enumerate(stand_ins[1]["mme"]) if at not in (4, 5)]
    (result,) = evaluate_benchmarks(
        Scripted({"mme": left}),  # type: ignore[arg-type]
        [benchmark_named("mme")],
        copy,
        tmp_path,
        unreadable=source.unreadable,
    )
    assert len(result.samples["mme"]) == len(left)


def test_a_damaged_video_costs_its_rows(copy, stand_ins, tmp_path) -> None:
    video = sorted((copy / "egoschema" / "videos").iterdir())[1]
    video.write_bytes(video.read_bytes()[:300])
    source, table, _ = evaluated(copy, ["egoschema"], stand_ins[1], tmp_path)
    (reason,) = source.unreadable["egoschema_subset"].values()
    assert str(video) in reason
    assert table.loc["egoschema", "evaluated"] == 3


def test_a_control_token_in_a_question_costs_its_row(copy, stand_ins, tmp_path) -> None:
    def ask_for_an_image(questions: list[Any]) -> None:
        questions[1] += " <|image_pad|>"

    change_column(copy, "chartqa", "question", ask_for_an_image)
    source, table, _ = evaluated(copy, ["chartqa"], stand_ins[1], tmp_path)
    assert "<|image_pad|>" in source.unreadable["chartqa"][1]
    assert table.loc["chartqa", "evaluated"] == 3


def test_rows_that_the_task_cannot_use_are_named(copy, stand_ins, tmp_path) -> None:
    """Including the first row, which lmms-eval reads when it builds a task; a null; a category."""

    def lose(values: list[Any]) -> None:
        values[0] = None

    def rename(categories: list[Any]) -> None:
        categories[2] = "unheard of"

    change_column(copy, "mmstar", "question", lose)
    change_column(copy, "videomme", "domain", rename)
    change_column(copy, "ocrbench", "question_type", rename)
    change_column(copy, "egoschema", "video_idx", lose)
    names = ["mmstar", "egoschema", "videomme", "ocrbench"]
    source, table, results = evaluated(copy, names, stand_ins[1], tmp_path)
    assert source.unreadable.keys() == {"mmstar", "egoschema_subset", "videomme", "ocrbench"}
    assert source.unreadable["mmstar"].keys() == source.unreadable["egoschema_subset"].keys() == {0}
    assert "its task cannot use it (AttributeError: " in source.unreadable["mmstar"][0]
    for name in ("videomme", "ocrbench"):
        assert source.unreadable[name].keys() == {2}
        assert "cannot score it (KeyError" in source.unreadable[name][2]
    assert table.loc[names, "evaluated"].tolist() == [3] * 4
    assert [len(samples) for r in results for samples in r.samples.values()] == [3] * 4


def test_a_limit_is_of_rows_that_were_opened(copy, stand_ins, tmp_path) -> None:
    damage(copy, "chartqa", lambda content: b"", 1, 3)
    source, table, results = evaluated(copy, ["chartqa"], stand_ins[1], tmp_path, samples=2)
    assert source.unreadable["chartqa"].keys() == {1}
    assert table.loc["chartqa", "evaluated"] == 1
    assert len(results[0].samples["chartqa"]) == 1


def test_a_benchmark_without_a_readable_row_is_refused(copy, tmp_path) -> None:
    damage(copy, "chartqa", lambda content: b"?", 0, 1, 2, 3)
    with pytest.raises(DataError, match="none of its rows can be read"):
        prepare_source(str(copy), 0, 0, ["chartqa"], VISION, tmp_path, tmp_path)


def test_images_of_a_table_are_decoded_by_the_one_loader(copy, tmp_path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)

    def gray16(_: bytes) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.fromarray(ramp).save(buffer, "PNG")
        return buffer.getvalue()

    damage(copy, "chartqa", gray16, 0)
    (task,) = benchmark_named("chartqa").tasks
    with benchmark_home(copy, tmp_path):
        _, turns = next(documents(build_task(task, copy)))
    picture = next(item["url"] for item in turns[0]["content"] if item["type"] == "image")
    values = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(values[..., 0] - np.rint(ramp / 257)).max() <= 1
