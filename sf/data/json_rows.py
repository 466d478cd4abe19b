"""A streaming reader of large JSON files that confines each fault to its row.

It reads a JSON array of objects, or one object per line (JSONL), with the standard library's
scanner over a window of the file, so memory does not grow with the file. ijson and `json.load` lose
everything after the first fault; here a row that does not parse is reported with its byte offset,
and reading continues at the next object that starts with a key of the schema.

The encoding is UTF-8, or UTF-16 or UTF-32 with or without a byte order mark.
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
_BETWEEN = re.compile(r"(?:[^\S\x1c-\x1f]|[,\[\]\ufeff])*")  # gzip starts with 0x1f
_ARRAY_END = re.compile(r"\}\s*\]\s*$")
_OVERLAP = 256  # characters kept while searching for the next row, whose start may be split
_ROW_START = re.compile(
    r'\{\s*"(problem_id|problem|data_type|problem_type|options|solution|path|data_source|process'
    r'|id|image|video|question|answer|conversations)"\s*:'
)
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
_ZEROS = {  # which of the first bytes are 0 when the first character is ASCII
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True): "utf-16-le",
    (True, False): "utf-16-be",
}
_FIRST = (b"[", b"{", b'"', b" ", b"\t", b"\r", b"\n")  # possible first bytes of JSON and its rows
_OTHER_FORMATS = {
    "<": "a page (HTML or XML), which servers often send instead of the file",
    "version https://git-lfs": "a Git LFS pointer: fetch the file itself",
    "\x1f\udc8b": "gzip: unpack it",
    "PK\x03\x04": "a zip archive: unpack it",
    "(\udcb5/\udcfd": "zstd: unpack it",
    "PAR1": "parquet: give it the extension .parquet",
}
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row, or one fault.

    Attributes:
        number: of the row in the file, from 1.
        offset: of its first byte.
        value: the parsed value; None for a fault.
        kind: "" or the kind of fault: "truncated JSON", "malformed JSON", "not JSON", "not UTF-8".
        reason: the fault and its position.
    """

    number: int
    offset: int
    value: Any
    kind: str = ""
    reason: str = ""


def _encoding(head: bytes) -> tuple[str, int]:
    """A JSON file's encoding by its first bytes (RFC 4627), and its byte order mark's length."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name, len(mark)
    zeros = tuple(byte == 0 for byte in head[:4])
    name = _ZEROS.get(zeros, _ZEROS.get(zeros[:2], "utf-8"))
    return name if head.strip(b"\0")[:1] in _FIRST else "utf-8", 0


class _Window:
    """A piece of the file as text; invalid bytes become lone surrogates."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.encoding, mark = _encoding(stream.read(4))
        self._errors = "surrogateescape" if self.encoding == "utf-8" else "replace"
        stream.seek(mark)
        self._decoder = codecs.getincrementaldecoder(self.encoding)(errors=self._errors)
        self.text, self.at, self.offset, self.ended = "", 0, mark, False

    def length(self, piece: str) -> int:
        """Length in the file of a piece of text, in bytes."""
        errors = "surrogateescape" if self.encoding == "utf-8" else "surrogatepass"
        return len(piece.encode(self.encoding, errors))

    def fill(self) -> None:
        """Read until at least `LONGEST_ROW` characters or the rest of the file lie ahead."""
        least = max(LONGEST_ROW, 2 * _OVERLAP)  # the search for a row leaves `_OVERLAP` behind
        while not self.ended and len(self.text) - self.at < least:
            chunk = self._stream.read(_CHUNK)
            self.ended = not chunk
            self.text = self.text[self.at :] + self._decoder.decode(chunk, final=self.ended)
            self.at = 0

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Consume the pattern's match at the current position, which may be empty."""
        match = pattern.match(self.text, self.at)
        return self.take(match.end()) if match else ""

    def take(self, end: int) -> str:
        """Consume and return the text up to `end`."""
        piece = self.text[self.at : end]
        self.offset += self.length(piece)
        self.at = end
        return piece


def _encoding_fault(window: _Window, piece: str, value: Any, offset: int) -> str:
    """The fault of the row's characters, or ""."""
    if window.encoding != "utf-8" and "\ufffd" in piece:
        where = offset + window.length(piece[: piece.index("\ufffd")])
        return f"the bytes at offset {where} are not {window.encoding.upper()}"
    try:
        piece.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(piece[error.start]) - 0xDC00
        where = offset + window.length(piece[: error.start])
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
        Rows of any JSON type (the caller rejects those that are not objects). A file that ends
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
            other = _other_format(window.text[window.at : window.at + 4096]) if number == 1 else ""
            if other and not _ROW_START.search(window.text, window.at):
                yield RawRow(1, offset, None, "not JSON", f"the file is not JSON but {other}")
                return
            yield _fault(window, number, error)
            if window.ended and window.at == len(window.text):
                return
            continue
        piece = window.take(end)
        if fault := _encoding_fault(window, piece, value, offset):
            yield RawRow(number, offset, None, "not UTF-8", fault)
        else:
            yield RawRow(number, offset, value)


def _other_format(head: str) -> str:
    """The format of a file whose first value is not JSON; "" if unknown."""
    if head[:1] in ("{", '"'):
        return ""
    for start, name in _OTHER_FORMATS.items():
        if head.startswith(start):
            return name
    first = head.splitlines()[0] if head else ""
    if not first.replace("\t", "").isprintable():
        return "binary data"
    commas, tabs = first.count(","), first.count("\t")
    return "a table (CSV): give it the extension .csv" if commas + tabs > 1 else ""


def _fault(window: _Window, number: int, error: Exception) -> RawRow:
    """Describe a row that does not parse and move on to the next one."""
    offset, start = window.offset, window.at
    message = getattr(error, "msg", str(error))
    inside = getattr(error, "pos", start)
    where = offset + window.length(window.text[start:inside])
    reason = f"row {number}, which starts at byte {offset}: {message} at byte {where}"
    resume = _ROW_START.search(window.text, start + 1)
    if (len(window.text) if resume is None else resume.start()) - start > LONGEST_ROW:
        reason = (
            f"row {number}, which starts at byte {offset}, is longer than {LONGEST_ROW} characters "
            f"or does not end: {message} at byte {where}"
        )
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
