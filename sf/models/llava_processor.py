"""Processor, chat template and generation settings of a converted LLaVA-NeXT checkpoint.

Images and frames are preprocessed as by LLaVA-NeXT's SigLIP processor: bicubic resizing to the
tower's size, mean and standard deviation 0.5. LLaVA-NeXT resizes with PIL and transformers with
torchvision, so some values differ by one of 255 levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AddedToken,
    AutoTokenizer,
    GenerationConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from sf.attention.video_form import video_form
from sf.errors import DataError
from sf.models.load import readable

__all__ = ["build_processor", "generation_settings"]

_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'video' %}GUARD<video>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""LLaVA-NeXT's conversation template "qwen_1_5", with its system message."""

_GUARD = (
    "{% if not line_ends %}{{ raise_exception('This checkpoint has its own tokens for videos: load "
    "model and processor with sf.models.load_model and sf.models.load_processor.') }}{% endif %}"
)
"""Stops plain transformers from using other tokens than those that the model was trained with."""


def build_processor(folder: Path, config: Any) -> tuple[Any, int]:
    """Build the processor around the tokenizer of a LLaVA-NeXT checkpoint.

    Args:
        folder: of the checkpoint.
        config: the converted `LlavaOnevisionConfig`; receives the ids of the placeholders.

    Returns:
        (processor, vocabulary size without the placeholders).

    Raises:
        DataError: no tokenizer, or too few embeddings for the placeholders.
    """
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        rule = "has neither tokenizer.json nor vocab.json and merges.txt"
        raise DataError("tokenizer", str(folder), rule, "give a complete checkpoint")
    with readable("tokenizer", folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(folder), config=config.text_config, trust_remote_code=False
        )
    for control in ("<|im_start|>", "<|im_end|>"):
        if control not in tokenizer.get_vocab():
            rule = f"lacks {control}, which LLaVA-NeXT's prompts for Qwen2 contain"
            raise DataError("tokenizer", str(folder), rule, "give a complete checkpoint")
    vocabulary, placeholders = len(tokenizer), ("<image>", "<video>")
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in placeholders],
        special_tokens=True,
    )
    image, video = (tokenizer.convert_tokens_to_ids(token) for token in placeholders)
    room = config.text_config.vocab_size
    if max(len(tokenizer) - 1, image, video) >= room:
        rule = f"leaves no room for the placeholders {image} and {video}"
        raise DataError("vocab_size", room, rule, "extend the embeddings of the checkpoint first")
    config.image_token_index, config.video_token_index = image, video
    vision = config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    siglip: dict[str, Any] = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    own = video_form(config).as_config() is not None
    template = _TEMPLATE.replace("GUARD", _GUARD if own else "")
    tokenizer.chat_template = template
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**siglip, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(**siglip),
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template,
        vision_aspect_ratio=config.vision_aspect_ratio,
    )
    return processor, vocabulary


def generation_settings(folder: Path, config: Any, vocabulary: int) -> GenerationConfig:
    """The generation settings of a checkpoint, or defaults if it has none.

    Ids beyond the vocabulary are never generated: LLaVA-NeXT's code cuts their rows off.

    Raises:
        DataError: a damaged generation_config.json.
    """
    if (folder / "generation_config.json").is_file():
        with readable("generation_config.json", folder):
            generation = GenerationConfig.from_pretrained(str(folder))
    else:
        generation = GenerationConfig.from_model_config(config)
        generation.eos_token_id = config.text_config.eos_token_id
    unused = set(range(vocabulary, config.text_config.vocab_size))
    generation.suppress_tokens = sorted(
        unused | {config.image_token_index, config.video_token_index}
    )
    return generation
