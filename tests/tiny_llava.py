"""Tiny random LLaVA models with the real processors, built from configurations in code."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from sf.models.tokenizer import train_tokenizer

FAMILIES = ("llava_onevision", "llava_next_video")
PATCH = 7  # pixels of a side
CELLS = {"llava_onevision": 5, "llava_next_video": 4}  # patches a side of a tile; 27 and 24 really

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_llava(family: str, corpus: list[str], seed: int = 0) -> tuple[Any, Any]:
    """An untrained model and its processor; the family's own classes throughout."""
    tokenizer = train_tokenizer(corpus)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    side = CELLS[family] * PATCH
    size = {"height": side, "width": side}
    points = [[side, side], [side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.25,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
    }
    common = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<video>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
        "image_grid_pinpoints": points,
        "text_config": text,
    }
    tokens = CELLS[family] ** 2
    torch.manual_seed(seed)
    if family == "llava_onevision":
        tower = {"model_type": "siglip_vision_model", "vision_use_head": False, **vision}
        processor: Any = LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=points),
            tokenizer,
            LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=tokens,
            vision_feature_select_strategy="full",
            chat_template=TEMPLATE,
        )
        config = LlavaOnevisionConfig(
            vision_config=tower, vision_feature_select_strategy="full", **common
        )
        model: Any = LlavaOnevisionForConditionalGeneration(config)
    else:
        tower = {"model_type": "clip_vision_model", **vision}
        edge = {"shortest_edge": side}
        processor = LlavaNextVideoProcessor(
            LlavaNextVideoVideoProcessor(size=edge, crop_size=size),
            LlavaNextImageProcessor(size=edge, crop_size=size, image_grid_pinpoints=points),
            tokenizer,
            patch_size=PATCH,
            num_additional_image_tokens=1,
            vision_feature_select_strategy="default",
            chat_template=TEMPLATE,
        )
        config = LlavaNextVideoConfig(
            vision_config=tower, vision_feature_select_strategy="default", **common
        )
        model = LlavaNextVideoForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "language_model.layers" in name:
                weight.normal_(std=0.25)
            elif weight.dim() > 1 and ("vision_tower" in name or "projector" in name):
                weight.normal_(std=0.15)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = text["eos_token_id"], text["pad_token_id"]
    generation.suppress_tokens = [common["image_token_id"], common["video_token_id"]]
    generation.do_sample = False
    return model.eval(), processor
