"""Processors built from local code only, and media written by the tests."""

from __future__ import annotations

import pytest

import sf  # noqa: F401  (declares torchvision's operators before transformers asks for them)
from sf.config import Vision

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def _build(family: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(["Which colour is the square? Give the letter."], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    kind = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family]
    return kind(  # saved bounds that would undo the configured ones
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 4),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 4),
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session", params=["qwen2_vl", "qwen2_5_vl"])
def processor(request):
    """A processor of each family, with saved pixel bounds that are too small on purpose."""
    return _build(request.param)


@pytest.fixture(scope="session")
def processor_2_5():
    """A Qwen2.5-VL processor."""
    return _build("qwen2_5_vl")


@pytest.fixture
def vision() -> Vision:
    """Small bounds: 4 to 16 tokens per image, 2 to 9 per frame, 8 frames at 2 per second."""
    return Vision(
        image_min_pixels=28 * 28 * 4,
        image_max_pixels=28 * 28 * 16,
        video_min_pixels=28 * 28 * 2,
        video_max_pixels=28 * 28 * 9,
        video_max_frames=8,
        video_fps=2.0,
    )


@pytest.fixture(scope="session")
def good_source(tmp_path_factory):
    """Forty good rows about 30 pictures and 10 clips; tests that change it use a copy."""
    from sources import write_good_source

    return write_good_source(tmp_path_factory.mktemp("good"))
