r"""JSON Lines files: one object a line, appended as results come, read after a kill at any moment.

A kill or a full disk can cut the last line only. The reader drops it with a warning, the next
append removes it from the file. Damage in an earlier line is an error.

Any text round-trips: line separators, control characters and lone surrogates are written as JSON
escapes, so that a line of the file is a record and a terminal shows it as text.
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
    """One object as a line, its end included."""
    text = json.dumps(record, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def read_json_lines(
    path: Path, make: Callable[[dict[str, Any]], Record] | None = None
) -> Iterator[Record | Any]:
    """The records of a file, in its order.

    Args:
        path: the file.
        make: turns an object into a record; by default the object is given as it is. It may raise
            KeyError, TypeError or ValueError for an object that is none.

    Raises:
        OSError: the file cannot be read.
        DataError: a line is damaged that is not the last one, or is an object that `make` refuses.
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
        warnings.warn(
            f"{damage.field} was cut off while it was written; it is dropped", stacklevel=2
        )


def append_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records; they are with the operating system when this returns.

    A last line that an earlier writer left cut off is removed first.
    """
    text = "".join(map(json_line, records))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _end_whole(file)
        file.write(text.encode())


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace a file by records, all at once."""
    with replacing(path) as part, part.open("wb") as file:
        file.writelines(json_line(record).encode() for record in records)


def _parsed(line: bytes) -> dict[str, Any]:
    fields = json.loads(line.decode("utf-8"))
    if not isinstance(fields, dict):
        raise ValueError("it is a JSON value of another type")
    return fields


def _damage(path: Path, number: int, line: bytes, rule: str) -> DataError:
    shown = line[:_SHOWN].decode(errors="replace").strip()
    return DataError(f"{path} line {number}", shown, rule, "delete this line, or the whole file")


def _end_whole(file: Any) -> None:
    """Make a file end with a whole line: complete it where only its end is missing, or cut it."""
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
