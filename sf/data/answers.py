"""Answers: of rows, parsed from their solutions, and of completions.

A solution is "<answer>...</answer>". Its content is parsed by the rule of the problem type; rows
whose solution breaks the rule are rejected, with the rule as the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sf.data.manifest import PROBLEM_TYPES
from sf.errors import DataError

__all__ = [
    "extract_answer",
    "option_letters",
    "option_texts",
    "parse_number",
    "parse_solution",
    "spelt_option",
]

_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LETTER = re.compile(r"\s*\(?([A-Z])(?:[.):\uff1a\uff0e\u3001]|\s*$)")


def extract_answer(text: str) -> str:
    """The stripped text of the first <answer>...</answer>; "" without one (Video-R1's rule)."""
    match = _ANSWER.search(text)
    return match.group(1).strip() if match else ""


def parse_number(text: str) -> float | None:
    """A finite number after stripping commas and outer spaces; None for anything else.

    Stricter than `float`: it rejects "nan", "inf" and "1_0", which a reward must not accept.
    """
    bare = text.replace(",", "").strip()
    if not _NUMBER.fullmatch(bare):
        return None
    value = float(bare)
    return value if math.isfinite(value) else None


def option_letters(options: Sequence[str]) -> tuple[str, ...]:
    """The letter of each option: its own prefix, else its position (A, B, ...)."""
    written = _written(options)
    if written:
        return tuple(match[1] for match in written)
    return tuple(chr(ord("A") + index) for index in range(len(options)))


def option_texts(options: Sequence[str]) -> tuple[str, ...]:
    """The options without their letter prefixes."""
    written = _written(options)
    return tuple(match.string[match.end() :].strip() for match in written) or tuple(options)


def spelt_option(answer: str, options: Sequence[str]) -> str:
    """The letter of the only option that the answer spells out, with or without letter; else ""."""
    bare = answer.strip(" .\n")
    pairs = [
        (letter, text.strip(" ."))
        for letter, text in zip(option_letters(options), option_texts(options), strict=True)
    ]
    alone = [letter for letter, text in pairs if text.casefold() == bare.casefold()]
    both = [
        letter
        for letter, text in pairs
        if re.fullmatch(rf"\(?{letter}[.):]*\s*(?i:{re.escape(text)})", bare)
    ]
    spelt = alone or both
    return spelt[0] if len(spelt) == 1 else ""


def _written(options: Sequence[str]) -> list[re.Match[str]]:
    """The letter prefixes of the options; empty unless each option has a distinct one."""
    matches = [match for option in options if (match := _LETTER.match(option))]
    distinct = len({match[1] for match in matches}) == len(options)
    return matches if distinct else []


def parse_solution(problem_type: str, solution: str, options: Sequence[str] = ()) -> str:
    """The reference answer, checked by the rule of its problem type.

    Args:
        problem_type: one of `PROBLEM_TYPES`.
        solution: "<answer>...</answer>".
        options: the row's options, for multiple choice.

    Returns:
        A letter, a number without commas, or text.

    Raises:
        DataError: unknown problem type, no tags, an empty answer, a letter without an option, or
            a numerical answer that is not a number.
    """
    if problem_type not in PROBLEM_TYPES:
        rule = f"it must be one of {', '.join(PROBLEM_TYPES)}"
        raise DataError("problem_type", problem_type, rule, "correct the row")
    match = _ANSWER.search(solution)
    if not match:
        rule = "it must contain <answer>...</answer>"
        raise DataError("solution", solution, rule, "correct the row")
    answer = match.group(1).strip()
    if not answer:
        raise DataError("solution", solution, "its answer must not be empty", "correct the row")
    if problem_type == "multiple choice":
        letters = option_letters(options)
        if answer not in letters:
            rule = f"the options {', '.join(letters) or '(none)'} lack the answer's letter"
            raise DataError("solution", answer, rule, "correct the row")
    if problem_type in ("numerical", "regression"):
        if parse_number(answer) is None:
            rule = f"the answer of a {problem_type} problem must be a number"
            raise DataError("solution", answer, rule, "correct the row")
        return answer.replace(",", "").strip()
    return answer
