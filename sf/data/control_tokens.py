"""Text that a tokenizer would take for something else than text.

A chat template joins other people's text with the model's own control tokens, and one pass of the
tokenizer reads both alike: a question that holds `<|im_end|>` ends the turn, one with
`<|image_pad|>` asks for another image. Such text is refused: no spelling of it gives the same text
without the token.
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
"""Of Qwen2-VL, Qwen2.5-VL and the LLaVA models on Qwen2: known before there is a tokenizer."""


def check_text(processor: Any, text: str, field: str = "text") -> None:
    """Refuse text with a control token of a model.

    Args:
        processor: of the model.
        text: of a user, of data, or of an earlier reply.
        field: for the message.

    Raises:
        DataError: it holds one.
    """
    for token in _tokens(processor):
        if token in text:
            rule = "it is a control token of the model and would not be read as text"
            raise DataError(field, token, rule, "take it out")


def check_turns(processor: Any, conversations: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Refuse conversations whose texts hold a control token: see `check_text`."""
    for turn in (turn for conversation in conversations for turn in conversation):
        content = turn["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            if isinstance(part.get("text"), str):
                check_text(processor, part["text"], f"text of the {turn['role']}")


def _tokens(processor: Any) -> list[str]:
    """The special tokens of a processor's tokenizer, the placeholders of media among them."""
    added = processor.tokenizer.added_tokens_decoder.values()
    tokens = {str(token) for token in added if token.special}
    for name in ("image_token", "video_token"):
        token = getattr(processor, name, None)
        tokens |= {token} if isinstance(token, str) else set()
    return sorted(tokens)
