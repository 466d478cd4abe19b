"""Five rewards, format and correctness on tables of cases, including bad answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf.data.answers import extract_answer, option_letters, parse_number, parse_solution
from sf.data.manifest import PROBLEM_TYPES
from sf.data.rewards import correctness, rouge_f, score, word_error_rate
from sf.errors import ConfigError, DataError


def wrapped(text: str) -> str:
    return f"<answer>{text}</answer>"


@pytest.mark.parametrize(
    ("given_text", "right", "reward"),
    [
        ("B", "B", 1.0),
        (" B\n", "B", 1.0),
        ("b", "B", 0.0),
        ("B.", "B", 0.0),
        ("B. blue", "B", 0.0),
        ("A", "B", 0.0),
        ("", "B", 0.0),
    ],
)
def test_multiple_choice(given_text, right, reward):
    assert score("multiple choice", wrapped(given_text), wrapped(right)) == reward


@pytest.mark.parametrize(
    ("given_text", "right", "reward"),
    [
        ("1,234", "1234", 1.0),
        ("1234.004", "1234", 1.0),
        ("1234.006", "1234", 0.0),
        ("12.00", "12", 1.0),
        ("-3", "3", 0.0),
        ("+3", "3", 1.0),
        (".5", "0.5", 1.0),
        ("5e-1", "0.5", 1.0),
        ("twelve", "12", 0.0),
        ("12 apples", "12", 0.0),
        ("", "0", 0.0),
        ("nan", "nan", 0.0),
        ("inf", "inf", 0.0),
        ("1e999", "1e999", 0.0),
        ("1_2", "12", 0.0),
        ("0x10", "16", 0.0),
    ],
)
def test_numerical(given_text, right, reward):
    assert score("numerical", wrapped(given_text), wrapped(right)) == reward


@pytest.mark.parametrize(
    ("given_text", "right", "reward"),
    [
        ("STOP HERE", "STOP HERE", 1.0),
        ("STOP  HERE ", "STOP HERE", 1.0),
        ("STOP THERE", "STOP HERE", 0.5),
        ("stop here", "STOP HERE", 0.0),
        ("STOP", "STOP HERE", 0.5),
        ("STOP HERE NOW", "STOP HERE", 0.5),
        ("", "STOP HERE", 0.0),
        ("a b c d e f", "STOP HERE", 0.0),
        ("HERE STOP", "STOP HERE", 0.0),
    ],
)
def test_ocr(given_text, right, reward):
    assert score("OCR", wrapped(given_text), wrapped(right)) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("given_text", "right", "reward"),
    [  # values of the package rouge_score 0.1.2 with stemming
        ("The cat sat on the mat", "the cat sat on the mat", 1.0),
        ("cats running", "cat runs", 1.0),
        ("a red square", "a blue square", (2 / 3 + 0 + 2 / 3) / 3),
        ("the square is red", "red is the square", (1.0 + 1 / 3 + 0.5) / 3),
        ("", "red", 0.0),
        ("...", "red", 0.0),
        ("\u7ea2\u8272", "\u7ea2\u8272", 0.0),
        ("red", "red", 2.0 / 3),
    ],
)
def test_free_form(given_text, right, reward):
    assert score("free-form", wrapped(given_text), wrapped(right)) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("given_text", "right", "reward"),
    [
        ("10", "10", 1.0),
        ("9", "10", 0.9),
        ("11", "10", 0.9),
        ("1,100", "1000", 0.9),
        ("-10", "10", 0.0),
        ("1000", "10", 0.0),
        ("0", "0", 1.0),
        ("0.1", "0", 0.0),
        ("-9", "-10", 0.9),
        ("nan", "10", 0.0),
        ("inf", "10", 0.0),
        ("about 10", "10", 0.0),
        ("", "10", 0.0),
    ],
)
def test_regression(given_text, right, reward):
    assert score("regression", wrapped(given_text), wrapped(right)) == pytest.approx(reward)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "B",
        "<answer>B",
        "B</answer>",
        "<answer></answer>",
        "<Answer>B</Answer>",
        "<answer>A</answer><answer>B</answer>",
        "</answer>B<answer>",
    ],
)
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_without_a_proper_answer_nothing_is_earned(problem_type, completion):
    solution = {"numerical": "7", "regression": "7", "OCR": "B x", "free-form": "B x"}
    assert score(problem_type, completion, wrapped(solution.get(problem_type, "B"))) == 0.0


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@given(text=st.text())
def test_rewards_lie_between_0_and_1(problem_type, text):
    for right in ("B", "12", "two words"):
        assert 0.0 <= score(problem_type, wrapped(text), wrapped(right)) <= 1.0
        assert 0.0 <= score(problem_type, text, wrapped(right)) <= 1.0


def test_the_answer_may_follow_thinking_and_span_lines():
    text = "<think>hm, A?</think>\n<answer>\n B \n</answer> done"
    assert extract_answer(text) == "B"
    assert score("multiple choice", text, wrapped("B")) == 1.0


@pytest.mark.parametrize(("cutoff", "expected"), [(0.5, 1.0), (0.9, 1.0), (0.91, 0.0), (1.0, 0.0)])
def test_cutoff_decides_fractional_scores(cutoff, expected):
    assert correctness("regression", wrapped("9"), wrapped("10"), cutoff=cutoff) == expected


PERFECT = {"multiple choice": "B", "numerical": "3", "regression": "3", "OCR": "two words"}


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_a_perfect_answer_passes_the_strictest_cutoff(problem_type):
    text = wrapped(PERFECT.get(problem_type, "red"))
    assert correctness(problem_type, text, text, cutoff=1.0) == 1.0


def test_an_empty_free_form_answer_is_wrong():
    assert correctness("free-form", wrapped(""), wrapped(""), cutoff=0.5) == 0.0
    assert correctness("free-form", wrapped("blue"), wrapped("red"), cutoff=0.5) == 0.0


@pytest.mark.parametrize("cutoff", [0.0, -1.0, 1.1, float("nan")])
def test_cutoffs_that_mean_nothing_are_refused(cutoff):
    with pytest.raises(ConfigError, match="correctness_cutoff"):
        correctness("OCR", wrapped("x"), wrapped("x"), cutoff=cutoff)


def test_unknown_type_is_refused():
    with pytest.raises(DataError, match="essay"):
        score("essay", "x", "x")
    with pytest.raises(DataError, match="essay"):
        parse_solution("essay", wrapped("x"))


@given(st.lists(st.sampled_from("ab c"), max_size=8), st.lists(st.sampled_from("ab"), max_size=8))
def test_word_error_rate_is_a_distance(left, right):
    one, other = " ".join(left), " ".join(right)
    assert word_error_rate(one, one) == 0.0
    distance = word_error_rate(one, other) * max(1, len(one.split()))
    assert distance == pytest.approx(word_error_rate(other, one) * max(1, len(other.split())))
    assert distance <= max(len(one.split()), len(other.split()))


@given(st.text(), st.text())
def test_rouge_is_symmetric(left, right):
    assert rouge_f(left, right) == pytest.approx(rouge_f(right, left))


@pytest.mark.parametrize(
    ("options", "letters"),
    [
        (["A. red", "B. blue"], ("A", "B")),
        (["(A) red", "(B) blue"], ("A", "B")),
        (["A: red", "B: blue"], ("A", "B")),
        (["A", "B", "C"], ("A", "B", "C")),
        (["C. red", "D. blue"], ("C", "D")),
        (["red", "blue"], ("A", "B")),
        (["a cat", "I see it"], ("A", "B")),
        (["apple", "ant"], ("A", "B")),
        (["A. red", "A. blue"], ("A", "B")),
        ([], ()),
    ],
)
def test_option_letters(options, letters):
    assert option_letters(options) == letters


@pytest.mark.parametrize(
    ("problem_type", "solution", "options", "answer"),
    [
        ("multiple choice", "<answer>B</answer>", ["A. x", "B. y"], "B"),
        ("multiple choice", "<answer> A </answer>", ["red", "blue"], "A"),
        ("numerical", "<answer>1,234.50</answer>", [], "1234.50"),
        ("regression", "<answer>-0.5</answer>", [], "-0.5"),
        ("OCR", "<answer>Hello, World</answer>", [], "Hello, World"),
        ("free-form", "<answer>a\nb</answer>", [], "a\nb"),
    ],
)
def test_solutions_are_parsed_by_type(problem_type, solution, options, answer):
    assert parse_solution(problem_type, solution, options) == answer


@pytest.mark.parametrize(
    ("problem_type", "solution", "options", "reason"),
    [
        ("multiple choice", "<answer>C</answer>", ["A. x", "B. y"], "lack the answer's letter"),
        ("multiple choice", "<answer>A</answer>", [], "none"),
        ("multiple choice", "<answer>x</answer>", ["A. x", "B. y"], "letter"),
        ("numerical", "<answer>three</answer>", [], "number"),
        ("regression", "<answer>nan</answer>", [], "number"),
        ("OCR", "Hello", [], "<answer>"),
        ("free-form", "<answer>\n</answer>", [], "empty"),
    ],
)
def test_solutions_that_break_the_rule_say_which(problem_type, solution, options, reason):
    with pytest.raises(DataError, match=reason):
        parse_solution(problem_type, solution, options)


@pytest.mark.parametrize("text", ["1e400", "--1", "1.2.3", "\u0661", "1 2", "0x1", "infinity"])
def test_what_is_no_number(text):
    assert parse_number(text) is None
