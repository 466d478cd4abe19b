"""Conversion of a user's own table of questions to Video-R1-260k's schema.

A row needs a question, an answer and one image or video; everything else has a default. Columns
have several accepted names (`docs/your_model.md`). With options, the answer is a letter or an
option's text; answer tags are optional.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sf.data.answers import (
    extract_answer,
    option_letters,
    option_texts,
    parse_number,
    spelt_option,
)
from sf.data.json_rows import RawRow, read_rows
from sf.data.manifest import PROBLEM_TYPES
from sf.data.schema import RowError
from sf.errors import DataError

__all__ = ["TABLES", "is_own_record", "own_record", "read_table"]

TABLES = (".csv", ".tsv", ".parquet")
"""Extensions of files that are not JSON."""
_NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "problem", "query", "prompt"),
    "answer": ("answer", "solution", "label", "target"),
    "media": (
        *("image", "video", "image_path", "video_path", "media", "path", "file", "file_name"),
        *("images", "videos"),
    ),
    "options": ("options", "choices"),
    "type": ("type", "problem_type", "question_type"),
    "id": ("id", "problem_id", "question_id"),
    "source": ("source", "data_source"),
}
_VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")
_TYPES = {
    **{name.lower(): name for name in PROBLEM_TYPES},
    **{"multiple_choice": "multiple choice", "multiple-choice": "multiple choice"},
    **{"mc": "multiple choice", "number": "numerical", "numeric": "numerical"},
    **{"open": "free-form", "free_form": "free-form", "text": "free-form"},
}


def is_own_record(record: Any) -> bool:
    """Whether a record lacks a key that every Video-R1-260k record has."""
    official = ("problem_id", "problem", "data_type", "problem_type", "solution", "path")
    return isinstance(record, dict) and not all(name in record for name in official)


def own_record(fields: Mapping[str, Any], number: int, source: str) -> dict[str, Any]:
    """Convert one row of a user's table to Video-R1-260k's schema.

    Args:
        fields: by column name, case-insensitive except for option letters.
        number: of the row, from 1.
        source: name of the table.

    Raises:
        RowError: no question, answer or media, several media, or an invalid value.
    """
    given = {str(name).strip().lower(): value for name, value in fields.items()}
    question = _text(_one(given, "question", fields), "question")
    answer = _one(given, "answer", fields)
    name, media = _media(given, fields)
    options = _options(given, fields)
    solution = _plain_answer(answer)
    kind = _kind(given, options, solution)
    if kind == "multiple choice":
        solution = _letter(solution, options)
    return {
        "problem_id": number if (identity := _first(given, "id")) is None else identity,
        "problem": question,
        "data_type": _data_type(given, name, media),
        "problem_type": kind,
        "options": options if kind == "multiple choice" else [],
        "solution": f"<answer>{solution}</answer>",
        "path": media,
        "data_source": str(_first(given, "source") or source),
    }


def _first(given: Mapping[str, Any], what: str) -> Any:
    """The first non-empty value among the columns with that meaning, or None."""
    return next((given[name] for name in _NAMES[what] if not _empty(given.get(name))), None)


def _empty(value: Any) -> bool:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return missing or (isinstance(value, str) and not value.strip()) or value in ([], ())


def _one(given: Mapping[str, Any], what: str, fields: Mapping[str, Any]) -> Any:
    value = _first(given, what)
    if value is None:
        raise _lacks(what, _NAMES[what], fields)
    return value


def _lacks(what: str, names: Sequence[str], fields: Mapping[str, Any]) -> RowError:
    columns = ", ".join(map(str, fields)) or "none"
    rule = f"the row has no {what}: it needs a column {' or '.join(names)} and has {columns}"
    return RowError("missing value", what, None, rule)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", field, value, "*it must be text")
    return value.strip()


def _media(given: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[str, str]:
    """The column and the path of the row's one image or video."""
    named = [name for name in _NAMES["media"] if not _empty(given.get(name))]
    if not named:
        raise _lacks("image or video", ("image", "video"), fields)
    paths = {name: _path(given[name], name) for name in named}
    if len(set(paths.values())) > 1:
        rule = "a question is about one image or video; leave one of the columns empty"
        raise RowError("several media", " and ".join(named), None, rule)
    return named[0], paths[named[0]]


def _path(value: Any, name: str) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | tuple):
        rule = f"a question is about one image or video, but {len(value)} are given"
        raise RowError("several media", name, None, rule)
    if isinstance(value, Mapping | bytes):
        rule = "it must be the path of a file; save images stored in a table to files first"
        raise RowError("wrong type", name, type(value).__name__, rule)
    return _text(value, name)


def _data_type(given: Mapping[str, Any], name: str, media: str) -> str:
    declared = given.get("data_type")
    if not _empty(declared):
        return str(declared)
    for kind in ("image", "video"):
        if name.startswith(kind):
            return kind
    return "video" if media.lower().endswith(_VIDEOS) else "image"


def _options(given: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """Each option with its letter."""
    options = _first(given, "options")
    if options is None:
        columns = itertools.takewhile(fields.__contains__, ascii_uppercase)
        options = {letter: fields[letter] for letter in columns}
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except ValueError:
            rule = "they must be a list (in a CSV, as JSON), or columns A, B, …"
            raise RowError("wrong type", "options", options, rule) from None
    if isinstance(options, Mapping):
        options = [f"{letter}. {text}" for letter, text in options.items() if not _empty(text)]
    if not isinstance(options, list | tuple):
        raise RowError("wrong type", "options", options, "they must be a list")
    if len(options) > len(ascii_uppercase):
        rule = f"at most {len(ascii_uppercase)} options have letters"
        raise RowError("bad options", "options", len(options), rule)
    texts = [str(option).strip() for option in options]
    if list(option_texts(texts)) != texts:
        return texts
    return [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]


def _plain_answer(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        rule = "it must be one text or number"
        raise RowError("wrong type", "answer", value, rule)
    text = str(value).strip()
    return extract_answer(text) or text


def _kind(given: Mapping[str, Any], options: Sequence[str], answer: str) -> str:
    declared = _first(given, "type")
    if declared is not None:
        kind = _TYPES.get(str(declared).strip().lower())
        if kind is None:
            rule = f"it must be one of {', '.join(PROBLEM_TYPES)}"
            raise RowError("unknown problem type", "type", declared, rule)
        return kind
    if options:
        return "multiple choice"
    return "free-form" if parse_number(answer) is None else "numerical"


def _letter(answer: str, options: Sequence[str]) -> str:
    """The letter of the correct option, which the answer names or spells out."""
    letters = option_letters(options)
    if answer in letters:
        return answer
    if spelt := spelt_option(answer, options):
        return spelt
    bare = answer.strip("(). :").upper()
    if bare in letters:
        return bare
    rule = f"it must be a letter of {', '.join(letters)} or the text of one option"
    raise RowError("bad answer", "answer", answer, rule)


def read_table(path: Path) -> Iterator[RawRow]:
    """The rows of a CSV, TSV, parquet, JSON or JSONL file, each fault confined to its row.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from _read_parquet(path)
    elif ending in (".csv", ".tsv"):
        yield from _read_csv(path)
    else:
        with path.open("rb") as stream:
            yield from read_rows(stream)


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = (row for batch in pq.ParquetFile(path).iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield RawRow(number, 0, row)
    except (OSError, pa.ArrowException) as error:
        rule = f"it is not a readable parquet file: {error}"
        raise DataError("questions", str(path), rule, "write it again") from error


def _read_csv(path: Path) -> Iterator[RawRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            signs = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
            table = csv.DictReader(stream, delimiter=signs, strict=True)
            yield from _csv_rows(path, table)
    except UnicodeDecodeError as error:
        rule = f"it is not UTF-8: {error.reason} at byte {error.start}"
        raise DataError("questions", str(path), rule, "save it as UTF-8") from error
    except csv.Error as error:
        rule = f"the names of its columns cannot be read: {error}"
        raise DataError("questions", str(path), rule, "correct the first line") from error


def _csv_rows(path: Path, table: csv.DictReader[str]) -> Iterator[RawRow]:
    columns = len(table.fieldnames or ())  # reads the first line
    for number in itertools.count(1):
        line = table.reader.line_num  # table.line_num is not updated after an error
        try:
            row = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            last = table.reader.line_num
            if last > line + 1:  # an unclosed quote hides the rows after it
                rule = f"row {number}, which starts in line {line + 1}, does not end: {error}"
                raise DataError("questions", str(path), rule, "close its quotes") from error
            yield RawRow(number, 0, None, "malformed CSV", f"line {last}: {error}")
            continue
        if None in row or None in row.values():
            rule = f"line {table.line_num} does not have the {columns} columns of "
            rule += "the first line; quote values that contain the separator"
            yield RawRow(number, 0, None, "malformed CSV", rule)
        else:
            yield RawRow(number, 0, row)
