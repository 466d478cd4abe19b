"""From a row to the one user turn that a model is asked.

Template "think_answer" is Video-R1's public prompt, word for word (its training code,
QUESTION_TEMPLATE and TYPE_TEMPLATE); "answer" asks for the answer inside <answer> tags without any
thinking, in few tokens, for small models.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from sf.data.manifest import PROBLEM_TYPES, Row
from sf.errors import ConfigError, DataError

__all__ = ["Template", "messages", "question_text"]

Template = Literal["answer", "think_answer"]

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
        question = "\n".join([question, "Options:", *row.options])
    if template == "answer":
        return f"{question}\n{_ANSWER_SUFFIX[row.problem_type]}"
    return _THINK.format(question=question) + _THINK_SUFFIX[row.problem_type]


def messages(row: Row, template: Template) -> list[dict[str, Any]]:
    """One user turn, media first, as `sf.data.vision.encode` and chat templates take it.

    Media stay references: {"type": "image" | "video", "path": str}.
    """
    media = {"type": row.data_type, "path": str(row.media_path)}
    text = {"type": "text", "text": question_text(row, template)}
    return [{"role": "user", "content": [media, text]}]
