"""Lenient parsing and scoring of free-form replies.

Training rewards only the format that the prompt asks for (`sf.data.rewards`). Other models write
"(B)", "B. a red square" or "It is 12.": this module searches the whole reply for the answer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sf.data.answers import extract_answer, option_letters, parse_number, spelt_option
from sf.data.rewards import correctness

if TYPE_CHECKING:
    from sf.data.manifest import Row

__all__ = ["judged", "read_reply"]

_NUMBER = re.compile(r"[+-]?(?:[0-9][0-9,]*\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_END = r"(?:[).:,*\n]|$|(?<![AI]) )"  # "A red square" names no option
_LEADING = re.compile(rf"\**\(?([A-Z]){_END}")
_NAMED = re.compile(rf"(?:answer|option|choice)\s*(?:is|:)*\s*\**\(?((?-i:[A-Z])){_END}", re.I)


def read_reply(row: Row, reply: str) -> str:
    """The answer in a reply, in the format of the row's problem type.

    It is searched inside answer tags, if any, else in the whole reply: the letter or text of an
    option, the only number of the reply, or the whole text.
    """
    text = (extract_answer(reply) or reply).strip()
    if row.problem_type == "multiple choice":
        return _letter(row, text)
    if row.problem_type in ("numerical", "regression"):
        if parse_number(text) is not None:
            return text
        numbers = {number.rstrip(".,") for number in _NUMBER.findall(text)}
        return numbers.pop() if len(numbers) == 1 else text
    return text


def _letter(row: Row, text: str) -> str:
    if spelt := spelt_option(text, row.options):
        return spelt
    match = _LEADING.match(text) or _NAMED.search(text)
    return match[1] if match and match[1] in option_letters(row.options) else text


def judged(row: Row, reply: str, cutoff: float = 0.5) -> float:
    """1.0 if the reply answers the row's question correctly, else 0.0.

    Args:
        row: the question.
        reply: the model's whole reply.
        cutoff: as in `sf.data.rewards.correctness`, for OCR, free-form and regression.
    """
    answer = f"<answer>{read_reply(row, reply)}</answer>"
    return correctness(row.problem_type, answer, row.solution, cutoff)
