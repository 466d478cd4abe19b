"""How right a completion is: Video-R1's five accuracy rewards, and 0/1 correctness.

All take the whole completion and the whole solution and read what stands inside <answer> tags.
Multiple choice and numerical are 0 or 1; OCR, free-form and regression are fractions, so that
Sparsity Forcing's r_per in {0, 1} (arXiv 2504.18579) needs a cut-off (`correctness`).

Where this differs from Video-R1's code: "nan", "inf" and "1_0" are no numbers (there "nan" earns
the full regression reward); its rule that both numbers or neither must have a decimal point is left
out, so 12 equals 12.00.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

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

_NOT_WORD = re.compile(r"[^a-z0-9]+")


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
    left, right = reference.split(), hypothesis.split()
    above = list(range(len(right) + 1))
    for row, word in enumerate(left, start=1):
        current = [row]
        for column, other in enumerate(right, start=1):
            substituted = above[column - 1] + (word != other)
            current.append(min(substituted, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1] / max(1, len(left))


def ocr(completion: str, solution: str) -> float:
    """1 - word error rate, within [0, 1]; case and punctuation count."""
    rate = word_error_rate(extract_answer(solution), extract_answer(completion))
    return max(0.0, 1.0 - rate)


@cache
def _stem() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # 1 s to import, only free-form rows need it

    return cache(PorterStemmer().stem)


def _words(text: str) -> list[str]:
    """rouge_score's tokens: lower case, a-z and 0-9, Porter stems of words above 3 letters."""
    stem = _stem()
    return [
        stem(word) if len(word) > 3 else word for word in _NOT_WORD.sub(" ", text.lower()).split()
    ]


def _f_measure(overlap: int, given: int, right: int) -> float:
    if not overlap:
        return 0.0
    precision, recall = overlap / given, overlap / right
    return 2 * precision * recall / (precision + recall)


def _longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    above = [0] * (len(right) + 1)
    for word in left:
        current = [0]
        for column, other in enumerate(right, start=1):
            best = above[column - 1] + 1 if word == other else max(above[column], current[-1])
            current.append(best)
        above = current
    return above[-1]


def rouge_f(reference: str, hypothesis: str) -> float:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L with stemming (equal to the package rouge_score)."""
    right, given = _words(reference), _words(hypothesis)
    total = 0.0
    for size in (1, 2):
        grams = [
            Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))
            for words in (given, right)
        ]
        overlap = (grams[0] & grams[1]).total()
        total += _f_measure(overlap, grams[0].total(), grams[1].total())
    return (total + _f_measure(_longest_common(right, given), len(given), len(right))) / 3


def free_form(completion: str, solution: str) -> float:
    """Mean of ROUGE-1, ROUGE-2 and ROUGE-L F-measures."""
    return rouge_f(extract_answer(solution), extract_answer(completion))


def regression(completion: str, solution: str) -> float:
    """1 - relative error, within [0, 1]; 0 if either is no number. For 0 only 0 is right."""
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

    ROUGE-2 knows no pairs in a single word: "red" for "red" scores 2/3, and must count as right.

    Args:
        problem_type: one of the five.
        completion: all that the model wrote.
        solution: the row's solution, with tags.
        cutoff: in (0, 1]; 1 demands a perfect score.

    Raises:
        ConfigError: the cut-off is not in (0, 1]; at 0 everything would be right.
        DataError: an unknown problem type.
    """
    if not 0.0 < cutoff <= 1.0:
        rule = "it must lie in (0, 1]: at 0 every completion would be right"
        raise ConfigError("correctness_cutoff", cutoff, rule, "use 0.5 or more")
    value = score(problem_type, completion, solution)
    answer = extract_answer(completion)
    return float(value >= cutoff or (bool(answer) and answer == extract_answer(solution)))
