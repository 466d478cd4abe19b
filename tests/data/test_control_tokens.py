"""Text with a model's control tokens is refused wherever it becomes model inputs."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from clips import record
from tiny_llava import FAMILIES, build_llava

from sf.data.control_tokens import check_text
from sf.data.schema import RowError, parse_record
from sf.data.vision import encode
from sf.errors import DataError

PICTURE = {"type": "image", "image": PIL.Image.fromarray(np.zeros((56, 56, 3), np.uint8))}
QWEN = ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>"]
HARMLESS = [
    "a <| b |> c",
    "<|psi|>",
    "<image 1>",
    "< |im_end| >",
    "<|IM_END|>",
    "<answer>3</answer>",
]


def turns(*texts: str):
    roles = ["user", "assistant"] * 2
    first = [PICTURE, {"type": "text", "text": texts[0]}]
    rest = [[{"type": "text", "text": text}] for text in texts[1:]]
    return [{"role": r, "content": c} for r, c in zip(roles, [first, *rest], strict=False)]


@pytest.mark.parametrize("token", QWEN)
def test_a_token_of_qwen_is_refused_in_any_turn(processor, vision, token):
    for texts in ([f"What{token}?"], ["What?", f"A{token}", "Why?"], ["What?", "A", token]):
        with pytest.raises(DataError, match="control token of the model") as caught:
            encode(processor, [turns("fine"), turns(*texts)], vision)
        assert caught.value.value == token


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_is_read_as_it_stands(processor, vision, text):
    ids = encode(processor, [turns(text)], vision)["input_ids"][0].tolist()
    assert text in processor.tokenizer.decode(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_of_llava_are_refused(family):
    _, processor = build_llava(family, ["Where?"])
    for token in ("<image>", "<video>"):
        with pytest.raises(DataError, match="control token"):
            check_text(processor, f"Where is {token}?")


@pytest.mark.parametrize("token", QWEN)
@pytest.mark.parametrize("place", ["problem", "options", "solution"])
def test_rows_are_rejected_by_that_reason(place, token):
    change = {
        "problem": f"What is {token}?",
        "options": ["A. red", f"B. {token}"],
        "solution": f"<answer>{token}</answer>",
    }
    kind = {"problem_type": "free-form"} if place == "solution" else {}
    with pytest.raises(RowError, match="control tokens") as caught:
        parse_record(record(1, **kind, **{place: change[place]}))
    assert caught.value.kind == "control token"
    assert parse_record(record(1, problem="What is <|psi|>?")).problem == "What is <|psi|>?"
