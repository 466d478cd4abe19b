r"""Escaping of text from models and data for its destination.

Answers and data rows can contain anything: terminal escape sequences, carriage returns that end a
table line, HTML, the markup of Markdown and of matplotlib's formulas, and lone surrogates, which
UTF-8 cannot encode. JSON keeps all of it (`sf.json_lines`), parquet all except lone surrogates;
everywhere else such characters are shown as escapes, for example ``\x1b``.
"""

from __future__ import annotations

import re

__all__ = ["encodable", "markdown", "printable"]

_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters except line feed and tab; line separators, direction marks, surrogates.
_UNPRINTABLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_ENTITY = re.compile(r"&(?=#?\w+;)")
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")


def printable(text: str) -> str:
    r"""Text for a terminal, a log or a CSV file: control characters, also ``\r``, are escaped.

    Line feeds and tabs are kept. The function is idempotent.
    """
    return _UNPRINTABLE.sub(_escape, text)


def encodable(text: str) -> str:
    r"""Text that UTF-8 can encode: lone surrogates become escapes such as ``\ud800``."""
    return _SURROGATE.sub(_escape, text)


def markdown(text: str) -> str:
    """Text for one line or cell of Markdown, shown literally, without line breaks."""
    escaped = _MARKDOWN.sub(r"\\\g<0>", printable(text))
    escaped = _ENTITY.sub("&amp;", escaped).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"\s*\n\s*", " ", escaped)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\r":
        return r"\r"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
