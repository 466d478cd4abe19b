"""Control tokens inside text.

A chat template joins untrusted text with the model's control tokens, and the tokenizer treats both
alike: a question that contains `<|im_end|>` ends the turn, and one with `<|image_pad|>` expects
another image. Such text is rejected, because it cannot be escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sf.errors import DataError

__all__ = ["QWEN", "check_text", "check_turns"]

QWEN = re.compile(
    r"<\|(endoftext|im_start|im_end|(object_ref|box|quad|vision)_(start|end)"
    r"|(vision|image|video)_pad)\|>"
)
"""Of Qwen2-VL, Qwen2.5-VL and the LLaVA models on Qwen2; known without a tokenizer."""


def check_text(processor: Any, text: str, field: str = "text") -> None:
    """Reject text with a control token of a model.

    Args:
        processor: the model's processor.
        text: from a user, from data, or from an earlier reply.
        field: name for the message.

    Raises:
        DataError: it contains one.
    """
    for token in _tokens(processor):
        if token in text:
            rule = "it is a control token of the model and would not be read as text"
            raise DataError(field, token, rule, "remove it")


def check_turns(processor: Any, conversations: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Reject conversations with a control token in a text; see `check_text`."""
    for turn in (turn for conversation in conversations for turn in conversation):
        content = turn["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            if isinstance(part.get("text"), str):
                check_text(processor, part["text"], f"text of the {turn['role']}")


def _tokens(processor: Any) -> list[str]:
    """The special tokens of a processor's tokenizer, including the media placeholders."""
    added = processor.tokenizer.added_tokens_decoder.values()
    tokens = {str(token) for token in added if token.special}
    for name in ("image_token", "video_token"):
        token = getattr(processor, name, None)
        tokens |= {token} if isinstance(token, str) else set()
    return sorted(tokens)
