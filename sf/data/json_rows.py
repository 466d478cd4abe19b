"""Rows of a large JSON file one after the other, each fault confined to its own row.

Reads a JSON array of objects or one object a line (JSONL) with the standard library's scanner over
a window of the file, so memory does not grow with the file. ijson or `json.load` lose everything
behind the first fault; here a row that does not parse is reported with its byte offset and reading
goes on at the next object that begins with a key of the schema.

UTF-8 is expected; UTF-16 and UTF-32 are read too, with or without a byte order mark.
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
_BETWEEN = re.compile(r"(?:[^\S\x1c-\x1f]|[,\[\]\ufeff])*")  # gzip begins with 0x1f
_ARRAY_END = re.compile(r"\}\s*\]\s*$")
_OVERLAP = 256  # characters kept while looking for the next row: its start may be cut
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
_FIRST = (b"[", b"{", b'"', b" ", b"\t", b"\r", b"\n")  # what JSON and its rows begin with
_OTHER_FORMATS = {
    "<": "a page (HTML or XML), often what a server sends in place of the file",
    "version https://git-lfs": "a Git LFS pointer: fetch the file itself",
    "\x1f\udc8b": "gzip: unpack it",
    "PK\x03\x04": "a zip archive: unpack it",
    "(\udcb5/\udcfd": "zstd: unpack it",
    "PAR1": "parquet: give it the ending .parquet",
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
        reason: what is wrong and where.
    """

    number: int
    offset: int
    value: Any
    kind: str = ""
    reason: str = ""


def _encoding(head: bytes) -> tuple[str, int]:
    """The encoding of a JSON file by its first bytes (RFC 4627), and the length of its mark."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name, len(mark)
    zeros = tuple(byte == 0 for byte in head[:4])
    name = _ZEROS.get(zeros, _ZEROS.get(zeros[:2], "utf-8"))
    return name if head.strip(b"\0")[:1] in _FIRST else "utf-8", 0


class _Window:
    """A piece of the file as text; bytes that are no UTF-8 become lone surrogates."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.encoding, mark = _encoding(stream.read(4))
        self._errors = "surrogateescape" if self.encoding == "utf-8" else "replace"
        stream.seek(mark)
        self._decoder = codecs.getincrementaldecoder(self.encoding)(errors=self._errors)
        self.text, self.at, self.offset, self.ended = "", 0, mark, False

    def length(self, piece: str) -> int:
        """Bytes of a piece of text in the file."""
        errors = "surrogateescape" if self.encoding == "utf-8" else "surrogatepass"
        return len(piece.encode(self.encoding, errors))

    def fill(self) -> None:
        """Have at least `LONGEST_ROW` characters ahead, or the end of the file."""
        least = max(LONGEST_ROW, 2 * _OVERLAP)  # the search for a row leaves `_OVERLAP` behind
        while not self.ended and len(self.text) - self.at < least:
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
        self.offset += self.length(piece)
        self.at = end
        return piece


def _encoding_fault(window: _Window, piece: str, value: Any, offset: int) -> str:
    """What is wrong with the row's characters, or ""."""
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
            other = _other_format(window.text[window.at : window.at + 4096]) if number == 1 else ""
            if other and not _ROW_START.search(window.text, window.at):
                yield RawRow(1, offset, None, "not JSON", f"the file is no JSON but {other}")
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
    """What a file is whose first value is no JSON; "" if that is not known."""
    if head[:1] in ("{", '"'):
        return ""
    for start, name in _OTHER_FORMATS.items():
        if head.startswith(start):
            return name
    first = head.splitlines()[0] if head else ""
    if not first.replace("\t", "").isprintable():
        return "binary data"
    commas, tabs = first.count(","), first.count("\t")
    return "a table (CSV): give it the ending .csv" if commas + tabs > 1 else ""


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
            f"or has no end that is seen: {message} at byte {where}"
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
