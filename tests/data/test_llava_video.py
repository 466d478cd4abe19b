"""LLaVA-Video-178K's replies: which option they select."""

from __future__ import annotations

import pytest

from sf.data.llava_video import records

OPTIONS = "\nA. A man is walking.\nB. A cat\nC. red"
LETTERED = [
    *("B", "B.", "(B)", "(B) A cat", "B. A cat", "B) A cat", "B: A cat", "B A cat", "a cat."),
    *("The answer is B.", "The correct answer is (B) A cat.", "Answer: B", "Answer: a cat"),
    *("Option B", "Option B: A cat", "The best option is B.", "B. It sits on the mat, see there."),
    *("**B**", "The answer is option (B)."),
]


def answer_to(reply: str, options: str = OPTIONS) -> str:
    turns = [{"from": "human", "value": f"What?{options}"}, {"from": "gpt", "value": reply}]
    (made,) = records({"id": "1", "video": "a.mp4", "conversations": turns}, "")
    return made["solution"].removeprefix("<answer>").removesuffix("</answer>")


@pytest.mark.parametrize("reply", LETTERED)
def test_a_reply_chooses_its_option(reply):
    assert answer_to(reply) == "B"


def test_a_sentence_that_begins_with_a_letter_chooses_by_its_text():
    assert answer_to("A man is walking.") == "A"
    assert answer_to("A man is walking.", "\nA. A dog\nB. A man is walking.") == "B"


@pytest.mark.parametrize(
    "reply", ["A man is running.", "A dog", "I see nothing", "A. A cat", "cat"]
)
def test_a_reply_that_chooses_none_stays_and_is_refused_later(reply):
    assert answer_to(reply) == reply


def test_a_bare_letter_beats_an_option_that_reads_like_one():
    assert answer_to("A", "\nA. B\nB. A") == "A"
    assert answer_to("A. B", "\nA. B\nB. A") == "A"
