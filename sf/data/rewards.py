"""Rewards of a completion: Video-R1's five accuracy rewards, and 0/1 correctness.

All take the complete completion and solution and compare the contents of their <answer> tags.
Multiple choice and numerical are 0 or 1. OCR, free-form and regression are fractions, so
Sparsity Forcing's r_per in {0, 1} (arXiv 2504.18579) needs a cut-off (`correctness`).

Differences from Video-R1's code: "nan", "inf" and "1_0" are not numbers (in Video-R1, "nan" earns
the full regression reward); Video-R1's rule that both numbers or neither must have a decimal point
is omitted, so 12 equals 12.00.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from sf.data.answers import extract_answer, parse_number
from sf.errors import ConfigError, DataError

__all__ = [
    "correctness",
    "free_form",
    "multiple_choice",
    "numerical",
    "ocr",
    "regression",
    "rouge_f",
    "score",
    "word_error_rate",
]


def multiple_choice(completion: str, solution: str) -> float:
    """1 if the letter is exactly the solution's letter, else 0."""
    answer = extract_answer(completion)
    return float(bool(answer) and answer == extract_answer(solution))


def numerical(completion: str, solution: str) -> float:
    """1 if both numbers are equal without commas and rounded to 2 decimals, else 0."""
    given, right = (parse_number(extract_answer(text)) for text in (completion, solution))
    return float(given is not None and right is not None and round(given, 2) == round(right, 2))


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Levenshtein distance over words, divided by the reference's word count (at least 1)."""
    import jiwer

    left, right = reference.split(), hypothesis.split()
    # jiwer splits at spaces only and rejects an empty reference.
    return jiwer.wer(" ".join(left), " ".join(right)) if left else float(len(right))


def ocr(completion: str, solution: str) -> float:
    """1 - word error rate, within [0, 1]; case and punctuation count."""
    rate = word_error_rate(extract_answer(solution), extract_answer(completion))
    return max(0.0, 1.0 - rate)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes 1 s, needed only for free-form rows

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def rouge_f(reference: str, hypothesis: str) -> float:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L with stemming."""
    return sum(each.fmeasure for each in _rouge().score(reference, hypothesis).values()) / 3


def free_form(completion: str, solution: str) -> float:
    """Mean of ROUGE-1, ROUGE-2 and ROUGE-L F-measures."""
    return rouge_f(extract_answer(solution), extract_answer(completion))


def regression(completion: str, solution: str) -> float:
    """1 - relative error, in [0, 1]; 0 if either is not a number. If it is 0, only 0 is right."""
    given, right = (parse_number(extract_answer(text)) for text in (completion, solution))
    if given is None or right is None:
        return 0.0
    if right == 0:
        return float(given == 0)
    return 1.0 - min(1.0, abs(given - right) / abs(right))


_SCORES: dict[str, Callable[[str, str], float]] = {
    "multiple choice": multiple_choice,
    "numerical": numerical,
    "OCR": ocr,
    "free-form": free_form,
    "regression": regression,
}


def score(problem_type: str, completion: str, solution: str) -> float:
    """The accuracy reward of the problem type, in [0, 1].

    Raises:
        DataError: an unknown problem type.
    """
    if problem_type not in _SCORES:
        rule = f"it must be one of {', '.join(_SCORES)}"
        raise DataError("problem_type", problem_type, rule, "prepare the data again")
    return _SCORES[problem_type](completion, solution)


def correctness(problem_type: str, completion: str, solution: str, cutoff: float) -> float:
    """1.0 if the score reaches the cut-off or the answer is the solution's text, else 0.0.

    A single word has no bigrams for ROUGE-2, so "red" for "red" scores 2/3 but must be correct.
    As in ROUGE, the comparison of free-form texts ignores case and punctuation.

    Args:
        problem_type: one of the five.
        completion: the model's complete output.
        solution: the row's solution, with tags.
        cutoff: in (0, 1]; 1 requires a perfect score.

    Raises:
        ConfigError: the cut-off is not in (0, 1]; at 0 everything would be correct.
        DataError: an unknown problem type.
    """
    if not 0.0 < cutoff <= 1.0:
        rule = "it must lie in (0, 1]: at 0 every completion would be correct"
        raise ConfigError("correctness_cutoff", cutoff, rule, "use 0.5 or more")
    if score(problem_type, completion, solution) >= cutoff:
        return 1.0
    answer, right = extract_answer(completion), extract_answer(solution)
    if problem_type == "free-form":  # ROUGE's normalisation, which can leave nothing
        answer, right = _words(answer) or answer, _words(right) or right
    return float(bool(answer) and answer == right)


def _words(text: str) -> str:
    """Text without case, punctuation and outer spaces."""
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())
