"""Which answer a reply gives, and whether it is right."""

from __future__ import annotations

import pytest

from sf.data.manifest import Row
from sf.evaluation.replies import judged, read_reply


def row(kind: str, answer: str, options: tuple[str, ...] = ()) -> Row:
    return Row("1", "?", kind, "image", options, f"<answer>{answer}</answer>", answer, "a.png", "")


CHOICE = row("multiple choice", "B", ("A. red", "B. dark blue"))
RIGHT_IS_A = row("multiple choice", "A", ("A. red", "B. dark blue"))


@pytest.mark.parametrize(
    ("question", "reply", "read"),
    [
        (CHOICE, "B", "B"),
        (CHOICE, "(B)", "B"),
        (CHOICE, "B. dark blue", "B"),
        (CHOICE, "Dark blue.", "B"),
        (CHOICE, "The answer is B.", "B"),
        (CHOICE, "Answer: B", "B"),
        (CHOICE, "**B**", "B"),
        (CHOICE, "B dark blue", "B"),
        (CHOICE, "B\nIt is dark.", "B"),
        (CHOICE, "<think>A?</think><answer>B</answer>", "B"),
        (row("numerical", "12"), "It is 12.", "12"),
        (row("numerical", "12"), "$12", "12"),
        (row("numerical", "1234.5"), "1,234.50", "1,234.50"),
        (row("free-form", "Red"), "red.", "red."),
    ],
)
def test_right_replies_in_other_words_count(question: Row, reply: str, read: str) -> None:
    assert read_reply(question, reply) == read
    assert judged(question, reply) == 1.0


@pytest.mark.parametrize(
    ("question", "reply"),
    [
        (CHOICE, "A. red"),
        (CHOICE, "Both are possible"),
        (RIGHT_IS_A, "A dark blue circle"),
        (RIGHT_IS_A, "The answer is a circle"),
        (CHOICE, ""),
        (CHOICE, "C"),
        (row("numerical", "12"), "between 11 and 12"),
        (row("numerical", "12"), "nan"),
        (row("free-form", "red"), "blue"),
        (row("free-form", "?"), "!"),
    ],
)
def test_wrong_replies_do_not(question: Row, reply: str) -> None:
    assert judged(question, reply) == 0.0
