"""A record of Video-R1-260k's schema -> a `Row`, or the reason to reject it; opens no media."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from sf.data.answers import parse_solution
from sf.data.control_tokens import QWEN
from sf.data.manifest import DATA_TYPES, PROBLEM_TYPES, Row
from sf.errors import DataError

__all__ = ["RowError", "parse_record", "safe_path"]

_REQUIRED = (
    "problem_id",
    "problem",
    "data_type",
    "problem_type",
    "solution",
    "path",
    "data_source",
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_PATH = 1024


class RowError(DataError):
    """A row is unusable.

    Attributes:
        kind: the class of the reason, for counting.
    """

    def __init__(self, kind: str, field: str, value: object, rule: str) -> None:
        super().__init__(field, value, rule)
        self.kind = kind


def safe_path(path: str) -> str:
    """A media path relative to the data root, normalised.

    Raises:
        RowError: the path is absolute, leaves the root, or contains invalid characters.
    """
    if not path.strip():
        raise RowError("bad path", "path", path, "it must not be empty")
    if len(path) > _LONGEST_PATH or _UNPRINTABLE.search(path):
        raise RowError("bad path", "path", path[:80], "it is too long or has control characters")
    if "\\" in path:
        raise RowError("bad path", "path", path, "it must be a plain POSIX path")
    if path.startswith(("/", "~")) or _DRIVE.match(path):
        raise RowError("path traversal", "path", path, "it must be relative to the data root")
    if ".." in path.split("/"):
        raise RowError("path traversal", "path", path, "it must not contain '..'")
    return posixpath.normpath(path)


def _text(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise RowError("wrong type", key, value, "*it must be text")
    if not value.strip():
        raise RowError("empty value", key, value, "it must not be empty")
    return value.strip()


def _options(record: dict[str, Any], problem_type: str) -> tuple[str, ...]:
    options = record.get("options")
    if options is None:
        options = []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise RowError("wrong type", "options", options, "they must be a list of strings")
    if problem_type != "multiple choice":
        return tuple(options)
    if len(options) < 2:
        raise RowError("bad options", "options", options, "multiple choice needs at least two")
    if any(not option.strip() for option in options):
        raise RowError("bad options", "options", options, "none of them may be empty")
    return tuple(option.strip() for option in options)


def _one_of(record: dict[str, Any], key: str, allowed: tuple[str, ...], kind: str) -> str:
    value = _text(record, key)
    if value not in allowed:
        raise RowError(kind, key, value, f"it must be one of {', '.join(allowed)}")
    return value


def parse_record(record: Any) -> Row:
    """Validate one record.

    Args:
        record: the parsed JSON value: `problem_id`, `problem`, `data_type`, `problem_type`,
            `options`, `solution`, `path`, `data_source`; other keys are ignored.

    Returns:
        The row, with `media` = `path` normalised and no media facts.

    Raises:
        RowError: the record is invalid; with the kind of fault and the reason.
    """
    if not isinstance(record, dict):
        raise RowError("not an object", "row", type(record).__name__, "it must be a JSON object")
    missing = [key for key in _REQUIRED if record.get(key) is None]
    if missing:
        raise RowError("missing key", "row", None, f"it lacks {', '.join(missing)}")
    identity = record["problem_id"]
    if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
        raise RowError("wrong type", "problem_id", identity, "it must be a number or text")
    data_type = _one_of(record, "data_type", DATA_TYPES, "unknown data type")
    problem_type = _one_of(record, "problem_type", PROBLEM_TYPES, "unknown problem type")
    problem, solution = _text(record, "problem"), _text(record, "solution")
    options = _options(record, problem_type)
    if control := QWEN.search("\n".join((problem, *options, solution))):
        rule = "question and answer must not contain a model's control tokens"
        raise RowError("control token", "row", control.group(), rule)
    try:
        answer = parse_solution(problem_type, solution, options)
    except DataError as error:
        raise RowError("bad answer", error.field, error.value, error.rule) from error
    return Row(
        id=str(identity),
        problem=problem,
        problem_type=problem_type,
        data_type=data_type,
        options=options,
        solution=solution,
        answer=answer,
        media=safe_path(_text(record, "path")),
        data_source=_text(record, "data_source"),
    )
