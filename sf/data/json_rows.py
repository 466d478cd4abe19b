"""Rows of a large JSON file one after the other, each fault confined to its own row.

Reads a JSON array of objects or one object a line (JSONL) with the standard library's scanner over
a window of the file, so memory does not grow with the file. ijson or `json.load` lose everything
behind the first fault; here a row that does not parse is reported with its byte offset and reading
goes on at the next object that begins with a key of the schema.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

__all__ = ["LONGEST_ROW", "RawRow", "read_rows"]

LONGEST_ROW = 2**20  # characters
_CHUNK = 4 * 2**20  # bytes
_BETWEEN = re.compile(r"[\s,\[\]\ufeff]*")
_ARRAY_END = re.compile(r"\}\s*\]\s*$")
_OVERLAP = 256  # characters kept while looking for the next row: its start may be cut
_ROW_START = re.compile(
    r'\{\s*"(problem_id|problem|data_type|problem_type|options|solution|path|data_source|process'
    r'|id|video|conversations)"\s*:'
)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row, or one fault.

    Attributes:
        number: of the row in the file, from 1.
        offset: of its first byte.
        value: the parsed value; None for a fault.
        kind: "" or the kind of fault: "truncated JSON", "malformed JSON", "not UTF-8".
        reason: what is wrong and where.
    """

    number: int
    offset: int
    value: Any
    kind: str = ""
    reason: str = ""


class _Window:
    """A piece of the file as text; bytes that are no UTF-8 become lone surrogates."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text, self.at, self.offset, self.ended = "", 0, 0, False

    def fill(self) -> None:
        """Have at least `LONGEST_ROW` characters ahead, or the end of the file."""
        while not self.ended and len(self.text) - self.at < LONGEST_ROW:
            chunk = self._stream.read(_CHUNK)
            self.ended = not chunk
            self.text = self.text[self.at :] + self._decoder.decode(chunk, final=self.ended)
            self.at = 0

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Take what the pattern matches here, perhaps nothing."""
        found = pattern.match(self.text, self.at)
        return self.take(found.end()) if found else ""

    def take(self, end: int) -> str:
        """The text up to `end`, which is then behind us."""
        piece = self.text[self.at : end]
        self.offset += len(piece.encode("utf-8", "surrogateescape"))
        self.at = end
        return piece


def _encoding_fault(piece: str, value: Any, offset: int) -> str:
    """What is wrong with the row's characters, or ""."""
    try:
        piece.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(piece[error.start]) - 0xDC00
        where = offset + len(piece[: error.start].encode("utf-8", "surrogateescape"))
        return f"byte 0x{byte:02x} at offset {where} is not UTF-8"
    if "\\ud" in piece or "\\uD" in piece:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return "an escape is half of a surrogate pair"
    return ""


def read_rows(stream: IO[bytes]) -> Iterator[RawRow]:
    """Yield every row and every fault of a JSON array or JSONL file, in order.

    Args:
        stream: the file, opened in binary mode.

    Yields:
        Rows of any JSON type (the caller refuses those that are no objects). A file that ends
        inside a row, or before the array is closed, yields a "truncated JSON" fault at its end.
    """
    window = _Window(stream)
    number, is_array, closed = 0, False, False
    while True:
        window.fill()
        gap = window.skip(_BETWEEN)
        is_array = is_array or (number == 0 and "[" in gap)
        closed = gap.rstrip().endswith("]")
        if window.at == len(window.text):
            if not window.ended:
                continue
            if is_array and not closed:
                reason = f"the file ends at byte {window.offset} after row {number}, before ']'"
                yield RawRow(number + 1, window.offset, None, "truncated JSON", reason)
            return
        window.fill()
        number += 1
        offset = window.offset
        try:
            value, end = _DECODER.raw_decode(window.text, window.at)
        except (ValueError, RecursionError) as error:
            yield _fault(window, number, error)
            if window.ended and window.at == len(window.text):
                return
            continue
        piece = window.take(end)
        if fault := _encoding_fault(piece, value, offset):
            yield RawRow(number, offset, None, "not UTF-8", fault)
        else:
            yield RawRow(number, offset, value)


def _fault(window: _Window, number: int, error: Exception) -> RawRow:
    """Describe a row that does not parse and move on to the next one."""
    offset, start = window.offset, window.at
    message = getattr(error, "msg", str(error))
    inside = getattr(error, "pos", start)
    where = offset + len(window.text[start:inside].encode("utf-8", "surrogateescape"))
    reason = f"row {number}, which starts at byte {offset}: {message} at byte {where}"
    resume = _ROW_START.search(window.text, start + 1)
    while resume is None and not window.ended:
        window.take(max(window.at, len(window.text) - _OVERLAP))
        window.fill()
        resume = _ROW_START.search(window.text, window.at)
    if resume is not None:
        window.take(resume.start())
    elif not _ARRAY_END.search(window.take(len(window.text))[-_OVERLAP:]):
        reason = f"the file ends at byte {window.offset} inside {reason}"
        return RawRow(number, offset, None, "truncated JSON", reason)
    return RawRow(number, offset, None, "malformed JSON", reason)
