"""From a row to the user turn of a prompt.

Template "think_answer" is Video-R1's public prompt, verbatim (QUESTION_TEMPLATE and TYPE_TEMPLATE
in its training code). "answer" requests the answer inside <answer> tags without thinking, in few
tokens, for small models. "short" requests the bare answer, in the wording of LLaVA-1.5's public
prompts, which the benchmarks' own prompts follow.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from sf.data.answers import extract_answer
from sf.data.manifest import PROBLEM_TYPES, Row
from sf.errors import ConfigError, DataError

__all__ = ["Template", "in_tags", "messages", "question_text", "solution_text"]

Template = Literal["answer", "think_answer", "short"]

_THINK = (
    "{question}\n"
    "Please think about this question as if you were a human pondering deeply. "
    "Engage in an internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', "
    "'oh, I see', 'let's break it down', etc, or other natural language thought expressions "
    "It's encouraged to include self-reflection or verification in the reasoning process. "
    "Provide your detailed reasoning between the <think> </think> tags, and then give your final "
    "answer between the <answer> </answer> tags."
)
_THINK_SUFFIX = {
    "multiple choice": " Please provide only the single option letter (e.g., A, B, C, D, etc.) "
    "within the <answer> </answer> tags.",
    "numerical": " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> "
    "</answer> tags.",
    "OCR": " Please transcribe text from the image/video clearly and provide your text answer "
    "within the <answer> </answer> tags.",
    "free-form": " Please provide your text answer within the <answer> </answer> tags.",
    "regression": " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> "
    "</answer> tags.",
}
_ANSWER_SUFFIX = {
    "multiple choice": "Give the option letter inside <answer> </answer> tags.",
    "numerical": "Give the number inside <answer> </answer> tags.",
    "OCR": "Give the text read inside <answer> </answer> tags.",
    "free-form": "Give a short text inside <answer> </answer> tags.",
    "regression": "Give the number inside <answer> </answer> tags.",
}
_SHORT_CHOICE = "Answer with the option's letter from the given choices directly."
_SHORT = "Answer the question using a single word or phrase."


def question_text(row: Row, template: Template) -> str:
    """The text part of the prompt: question, options, instruction, suffix of the problem type.

    Raises:
        ConfigError: an unknown template.
        DataError: an unknown problem type.
    """
    if template not in get_args(Template):
        rule = f"it must be one of {', '.join(get_args(Template))}"
        raise ConfigError("template", template, rule, "use one of these")
    if row.problem_type not in PROBLEM_TYPES:
        rule = f"it must be one of {', '.join(PROBLEM_TYPES)}"
        raise DataError("problem_type", row.problem_type, rule, "prepare the data again")
    question = row.problem
    if row.problem_type == "multiple choice":
        if template == "think_answer":  # as in Video-R1's code
            options = "".join(f"{option}\n" for option in row.options)
            question = f"{question}Options:\n{options}"
        else:
            question = "\n".join([question, "Options:", *row.options])
    if template == "answer":
        return f"{question}\n{_ANSWER_SUFFIX[row.problem_type]}"
    if template == "short":
        suffix = _SHORT_CHOICE if row.problem_type == "multiple choice" else _SHORT
        return f"{question}\n{suffix}"
    return _THINK.format(question=question) + _THINK_SUFFIX[row.problem_type]


def solution_text(row: Row, template: Template) -> str:
    """The target reply: the solution as in the data, without its tags for "short"."""
    return extract_answer(row.solution) if template == "short" else row.solution


def in_tags(reply: str, template: Template) -> str:
    """A reply in the form that `sf.data.rewards` expects.

    For "short" the whole reply is the answer; a reply with part of an answer tag is wrong.
    """
    if template != "short":
        return reply
    return "" if "answer>" in reply else f"<answer>{reply}</answer>"


def messages(row: Row, template: Template) -> list[dict[str, Any]]:
    """One user turn, media first, for `sf.data.vision.encode` and chat templates.

    Media stay references: {"type": "image" | "video", "path": str}.
    """
    media = {"type": row.data_type, "path": str(row.media_path)}
    text = {"type": "text", "text": question_text(row, template)}
    return [{"role": "user", "content": [media, text]}]
