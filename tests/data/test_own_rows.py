"""Questions in a user's own table: obvious columns are read, faults are named by their row."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from clips import write_picture
from sources import prepared, used

from sf.data.collect import collect
from sf.data.manifest import Row
from sf.data.own_rows import own_record
from sf.data.schema import RowError
from sf.errors import DataError

RECORDS = [
    {"question": "Which?", "options": ["red", "blue"], "answer": "blue", "image": "a.png"},
    {"question": "How many?", "answer": 3, "image": "b.png"},
    {"question": "What is it?", "answer": "a cat", "video": "c.mp4"},
]
EXPECTED = [
    ("multiple choice", ("A. red", "B. blue"), "B", "image"),
    ("numerical", (), "3", "image"),
    ("free-form", (), "a cat", "video"),
]


def write(path: Path, records: list[dict]) -> Path:
    ending = path.suffix
    if ending == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif ending == ".json":
        path.write_text(json.dumps(records))
    elif ending == ".parquet":
        pd.DataFrame(records).astype({"answer": str}).to_parquet(path)
    else:
        table = pd.DataFrame(records)
        table["options"] = [
            json.dumps(x) if isinstance(x, list) else None for x in table["options"]
        ]
        table.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    return path


def rows_of(path: Path) -> list[Row]:
    collected = collect([path], path.parent)
    assert not collected.rejects, collected.rejects
    return collected.rows


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_form_of_table_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    rows = rows_of(write(tmp_path / f"mine{ending}", RECORDS))
    assert [(r.problem_type, r.options, r.answer, r.data_type) for r in rows] == EXPECTED
    assert [r.id for r in rows] == ["1", "2", "3"]
    assert {r.data_source for r in rows} == {"mine"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"A": "red", "B": "blue", "answer": "A"}, (["A. red", "B. blue"], "A")),
        ({"choices": ["(A) red", "(B) blue"], "answer": "(B)"}, (["(A) red", "(B) blue"], "B")),
        ({"options": '["red", "blue"]', "answer": "RED"}, (["A. red", "B. blue"], "A")),
        ({"options": {"A": "red", "B": "blue"}, "answer": "b"}, (["A. red", "B. blue"], "B")),
        ({"options": ["Ant", "Bee"], "answer": "Bee"}, (["A. Ant", "B. Bee"], "B")),
        ({"A": "red", "B": "", "C": "blue", "answer": "C"}, (["A. red", "C. blue"], "C")),

        ({"options": ["Cat", "A cat"], "answer": "a cat"}, (["A. Cat", "B. A cat"], "B")),
        ({"options": [f"no. {n}" for n in range(11)], "answer": "no. 10"},
         ([f"{letter}. no. {n}" for n, letter in enumerate("ABCDEFGHIJK")], "K")),
        ({"options": ["red", "blue"], "solution": "<answer>B</answer>"},
         (["A. red", "B. blue"], "B")),
    ],
)  # fmt: skip
def test_options_and_answers_in_many_spellings(fields: dict, expected: tuple) -> None:
    record = own_record({"Question": "Which?", "image": "a.png", **fields}, 1, "mine")
    assert (record["options"], record["solution"]) == (
        expected[0],
        f"<answer>{expected[1]}</answer>",
    )
    assert record["problem_type"] == "multiple choice"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"answer": "x", "image": "a.png"}, "question or problem"),
        ({"question": "x", "image": "a.png"}, "answer or solution"),
        ({"question": "x", "answer": "x"}, "image or video"),
        ({"question": "x", "answer": "x", "image": "a.png", "video": "b.mp4"},
         "one image or video"),
        ({"question": "x", "answer": "x", "image": ["a.png", "b.png"]}, "2 are given"),
        ({"question": "x", "answer": "x", "image": {"bytes": b""}}, "path of a file"),
        ({"question": "x", "answer": "green", "image": "a.png", "options": ["red", "blue"]},
         "a letter of A, B or the text"),
        ({"question": "x", "answer": ["a", "b"], "image": "a.png"}, "one text or number"),
        ({"question": "x", "answer": "x", "image": "a.png", "type": "essay"}, "multiple choice"),
        ({"question": "x", "answer": "x", "image": "a.png", "options": list("x" * 27)}, "26"),
        ({"question": "x", "answer": "x", "image": "a.png", "options": "red, blue"},
         "columns A, B"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(fields: dict, named: str) -> None:
    with pytest.raises(RowError, match=named):
        own_record(fields, 1, "mine")


def test_a_broken_line_of_a_csv_is_one_reject(tmp_path: Path) -> None:
    lines = ["question,answer,image", "What, now?,x,a.png", '"What"?,x,a.png', "What?,x,a.png"]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    collected = collect([tmp_path / "q.csv"], tmp_path)
    assert [row.id for row in collected.rows] == ["3"]
    assert [reject.reason.partition(":")[0] for reject in collected.rejects] == [
        *("line 2 does not have the 3 columns of the first line; quote values that contain the "
          "separator", "line 3")
    ]  # fmt: skip


def test_a_csv_with_a_quote_that_nothing_closes_is_refused(tmp_path: Path) -> None:
    """It hides an unknown number of rows after it."""
    (tmp_path / "q.csv").write_text('question,answer,image\n"What?,x,a.png\nWhat?,x,a.png\n')
    with pytest.raises(DataError, match="row 1, which starts in line 2, does not end"):
        collect([tmp_path / "q.csv"], tmp_path)


def test_a_csv_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('"question"s,answer,image\nWhat?,x,a.png\n')
    with pytest.raises(DataError, match="names of its columns"):
        collect([tmp_path / "q.csv"], tmp_path)


def test_a_letter_alone_is_no_option() -> None:
    fields = {"question": "Where?", "image": "a.png", "X": "left", "answer": "12"}
    assert own_record(fields, 1, "mine")["problem_type"] == "numerical"


def test_numbers_from_zero_are_kept(tmp_path: Path) -> None:
    records = [{"id": n, "question": f"x{n}", "answer": "x", "image": "a.png"} for n in range(2)]
    assert [row.id for row in rows_of(write(tmp_path / "mine.jsonl", records))] == ["0", "1"]


def test_an_own_table_is_a_source_of_prepare(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    records = []
    for number in range(8):
        write_picture(tmp_path / f"photos/{number}.png", shade=number)
        records.append({"question": "How many?", "answer": number, "image": f"{number}.png"})
    source = write(tmp_path / "mine.jsonl", records)
    out, _ = prepared(source, tmp_path / "work", media=str(tmp_path / "photos"))
    rows = used(out)
    assert len(rows) == 8
    assert {row.answer for row in rows.values()} == set("01234567")
    assert all(row.media_path.is_file() for row in rows.values())
