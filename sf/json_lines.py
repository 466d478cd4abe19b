r"""JSON Lines files: one object per line, appended as results arrive, readable after any kill.

A kill or a full disk can truncate only the last line. The reader drops it with a warning, and the
next append removes it from the file. Damage in an earlier line is an error.

Any text round-trips: line separators, control characters and lone surrogates are written as JSON
escapes, so that each line of the file is one record and is safe to print on a terminal.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sf.atomic_files import replacing
from sf.errors import DataError

__all__ = ["append_json_lines", "json_line", "read_json_lines", "write_json_lines"]

Record = TypeVar("Record")

# C1 control characters, line and paragraph separators, direction marks, surrogates.
_UNSAFE = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SHOWN = 80
_BLOCK = 1 << 16


def json_line(record: dict[str, Any]) -> str:
    """One object as a line, including its line ending."""
    text = json.dumps(record, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def read_json_lines(
    path: Path, make: Callable[[dict[str, Any]], Record] | None = None
) -> Iterator[Record | Any]:
    """The records of a file, in file order.

    Args:
        path: the file.
        make: converts an object to a record; by default, objects are returned unchanged. It may
            raise KeyError, TypeError or ValueError for an invalid object.

    Raises:
        OSError: the file cannot be read.
        DataError: a line before the last is damaged, or `make` rejects an object.
    """
    damage: DataError | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if damage is not None:
                raise damage
            if not line.strip():
                continue
            try:
                fields = _parsed(line)
            except ValueError as error:
                damage = _damage(path, number, line, f"is not a JSON object ({error})")
                continue
            try:
                yield fields if make is None else make(fields)
            except (KeyError, TypeError, ValueError) as error:
                raise _damage(path, number, line, f"is not a record ({error})") from error
    if damage is not None:
        warnings.warn(f"{damage.field} was cut off during writing and is dropped", stacklevel=2)


def append_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records; the operating system has them when this returns.

    A truncated last line of an earlier writer is removed first.
    """
    text = "".join(map(json_line, records))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _end_whole(file)
        file.write(text.encode())


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace a file with records, atomically."""
    with replacing(path) as part, part.open("wb") as file:
        file.writelines(json_line(record).encode() for record in records)


def _parsed(line: bytes) -> dict[str, Any]:
    fields = json.loads(line.decode("utf-8"))
    if not isinstance(fields, dict):
        raise ValueError("it is a JSON value of another type")
    return fields


def _damage(path: Path, number: int, line: bytes, rule: str) -> DataError:
    shown = line[:_SHOWN].decode(errors="replace").strip()
    return DataError(f"{path} line {number}", shown, rule, "delete this line or the file")


def _end_whole(file: Any) -> None:
    """Make a file end with a complete line: add a missing line ending, or remove a partial line."""
    size = file.seek(0, os.SEEK_END)
    start, last = size, b""
    while start > 0 and last.rstrip(b"\n").count(b"\n") == 0:
        step = min(_BLOCK, start)
        start -= step
        file.seek(start)
        last = file.read(step) + last
    line = last.rstrip(b"\n").rpartition(b"\n")[2] + b"\n" * last.endswith(b"\n")
    if not line.strip():
        return
    try:
        _parsed(line)
    except ValueError:
        file.truncate(size - len(last) + last.rindex(line))
    else:
        if not line.endswith(b"\n"):
            file.write(b"\n")
