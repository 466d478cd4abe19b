"""Prompts by problem type: one user turn, media first, an instruction that fits the type."""

from __future__ import annotations

import dataclasses

import pytest

from sf.data.manifest import PROBLEM_TYPES, Row
from sf.data.prompts import in_tags, messages, question_text, solution_text
from sf.errors import ConfigError, DataError


def row(problem_type: str, data_type: str = "image") -> Row:
    options = ("A. red", "B. blue") if problem_type == "multiple choice" else ()
    return Row(
        "1", "Which {colour}?", problem_type, data_type, options, "", "", "a/b.png", "s", "/data"
    )


@pytest.mark.parametrize("template", ["answer", "think_answer"])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("data_type", ["image", "video"])
def test_one_user_turn_media_first(template, problem_type, data_type):
    (turn,) = messages(row(problem_type, data_type), template)
    media, text = turn["content"]
    assert turn["role"] == "user"
    assert media == {"type": data_type, "path": "/data/a/b.png"}
    assert text["text"].startswith("Which {colour}?")
    assert "<answer> </answer>" in text["text"]
    assert ("<think>" in text["text"]) == (template == "think_answer")


@pytest.mark.parametrize("template", ["answer", "think_answer"])
def test_options_follow_the_question_of_multiple_choice_only(template):
    text = question_text(row("multiple choice"), template)
    start = {
        "answer": "Which {colour}?\nOptions:\nA. red\nB. blue\nGive",
        "think_answer": "Which {colour}?Options:\nA. red\nB. blue\n\nPlease think",
    }
    assert text.startswith(start[template])
    assert "Options:" not in question_text(row("OCR"), template)


@pytest.mark.parametrize("template", ["answer", "think_answer", "short"])
@pytest.mark.parametrize("problem_type", [kind for kind in PROBLEM_TYPES if "choice" not in kind])
def test_the_type_says_what_is_asked_whatever_options_a_row_has(template, problem_type):
    with_options = dataclasses.replace(row(problem_type), options=("A. red", "B. blue"))
    assert question_text(with_options, template) == question_text(row(problem_type), template)
    none = dataclasses.replace(row("multiple choice"), options=())
    last = question_text(row("multiple choice"), template).splitlines()[-1]
    assert question_text(none, template).splitlines()[-1] == last


@pytest.mark.parametrize(
    ("problem_type", "asked"),
    [
        ("multiple choice", "only the single option letter (e.g., A, B, C, D, etc.)"),
        ("numerical", "the numerical value (e.g., 42 or 3.14)"),
        ("OCR", "transcribe text from the image/video clearly"),
        ("free-form", "your text answer"),
        ("regression", "the numerical value (e.g., 42 or 3.14)"),
    ],
)
def test_video_r1_suffix_by_type(problem_type, asked):
    assert asked in question_text(row(problem_type), "think_answer")


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_short_suffix_by_type(problem_type):
    kinds = {"multiple choice": "letter", "numerical": "number", "regression": "number"}
    last = question_text(row(problem_type), "answer").splitlines()[-1]
    assert kinds.get(problem_type, "text") in last


def test_unknown_template_and_type_are_refused():
    with pytest.raises(ConfigError, match="answer, think_answer"):
        question_text(row("OCR"), "loud")
    with pytest.raises(DataError, match="essay"):
        question_text(row("essay"), "answer")


def test_short_asks_for_a_bare_answer_as_the_benchmarks_do():
    choice = question_text(row("multiple choice"), "short")
    assert choice.endswith("\nAnswer with the option's letter from the given choices directly.")
    assert "B. blue" in choice
    for kind in set(PROBLEM_TYPES) - {"multiple choice"}:
        text = question_text(row(kind), "short")
        assert text == "Which {colour}?\nAnswer the question using a single word or phrase."


def test_the_reply_to_short_is_the_answer_itself():
    asked = dataclasses.replace(row("OCR"), solution="<answer>red cube</answer>")
    assert solution_text(asked, "short") == "red cube"
    assert solution_text(asked, "answer") == asked.solution
    assert in_tags("red cube", "short") == asked.solution
    assert in_tags("red cube", "answer") == "red cube"
    assert in_tags("red cube</answer>", "short") == ""
