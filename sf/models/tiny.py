"""Tiny models of the real architectures, with the real processors, built without downloads.

The sizes were found by experiment (docs/mini-world.md): at this width, a model with transformers'
default initializer range of 0.02 stays at chance level, one with 0.08 does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from sf.errors import UnsupportedModelError
from sf.models.load import FAMILIES
from sf.models.tokenizer import CHAT_TEMPLATE, train_tokenizer
from sf.sections import SCRATCH_FAMILIES

__all__ = ["build_processor", "build_tiny"]

_WIDTH, _LAYERS, _HEADS, _KV_HEADS, _MLP = 128, 3, 4, 2, 256
_VISION_WIDTH, _VISION_DEPTH, _VISION_HEADS = 64, 2, 2
_INIT_RANGE = 0.08
_MATCH_GAIN, _RANDOM_SHARE = 0.5, 0.3  # of the mimetic initialisation
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
_MIN_PIXELS, _MAX_PIXELS = 4 * 28 * 28, 1280 * 28 * 28


def build_processor(family: str, corpus: Iterable[str]) -> Any:
    """Qwen's image and video processors around a tokenizer trained on `corpus`."""
    tokenizer = train_tokenizer(corpus)
    size = {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS}
    kind = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen2VLProcessor
    return kind(
        image_processor=Qwen2VLImageProcessor(size=dict(size)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(size), cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def _config(family: str, tokenizer: Any) -> Qwen2_5_VLConfig | Qwen2VLConfig:
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "max_position_embeddings": 32768,
        "initializer_range": _INIT_RANGE,
        "rope_parameters": dict(_ROPE),
        "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    common = {
        "text_config": text,
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": True,
        "initializer_range": _INIT_RANGE,
    }
    vision: dict[str, Any] = {
        "depth": _VISION_DEPTH,
        "num_heads": _VISION_HEADS,
        "initializer_range": _INIT_RANGE,
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": _VISION_WIDTH, "hidden_size": _WIDTH, "mlp_ratio": 2}
        return Qwen2VLConfig(vision_config=vision, **common)
    vision |= {
        "hidden_size": _VISION_WIDTH,
        "out_hidden_size": _WIDTH,
        "intermediate_size": 2 * _VISION_WIDTH,
        "window_size": 112,
        "fullatt_block_indexes": [_VISION_DEPTH - 1],
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(vision_config=vision, **common)


@torch.no_grad()
def _start_as_lookup(decoder: Any) -> None:
    """Mimetic initialisation (arXiv 2305.09828): attention starts as a lookup by content.

    The query heads of a group share their projection with the group's key head, so a token attends
    to similar tokens, and value and output projections are transposes of each other, so the
    attended content is copied. Each matrix keeps a random component. From a plain random
    initialisation, three layers of this width need several times as many steps to bind shape and
    colour.
    """
    width, group = _WIDTH, _HEADS // _KV_HEADS
    head = width // _HEADS
    for layer in decoder.layers:
        attention = layer.self_attn
        matches, copies = [], []
        for _ in range(_KV_HEADS):
            match, _ = torch.linalg.qr(torch.randn(width, head))
            copy, _ = torch.linalg.qr(torch.randn(width, head))
            matches.append(match.T * _MATCH_GAIN * (width / head) ** 0.5)
            copies.append(copy.T)
        grouped = [match for match in matches for _ in range(group)]
        outward = [copy.T / group for copy in copies for _ in range(group)]
        for module, start in (
            (attention.q_proj, torch.cat(grouped)),
            (attention.k_proj, torch.cat(matches)),
            (attention.v_proj, torch.cat(copies)),
            (attention.o_proj, torch.cat(outward, dim=1)),
        ):
            module.weight.mul_(_RANDOM_SHARE).add_(start)
            if module.bias is not None:
                module.bias.zero_()


def build_tiny(family: str, corpus: Iterable[str], seed: int) -> tuple[Any, Any]:
    """An untrained tiny model and its processor.

    Args:
        family: "qwen2_vl" or "qwen2_5_vl".
        corpus: texts for the tokenizer (see `train_tokenizer`).
        seed: of the weights; the same arguments give the same model.

    Returns:
        (model in float32 on the CPU, processor).

    Raises:
        UnsupportedModelError: another family.
    """
    if family not in SCRATCH_FAMILIES:
        raise UnsupportedModelError("family", family, f"must be one of {SCRATCH_FAMILIES}")
    processor = build_processor(family, corpus)
    config = _config(family, processor.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family](config)
        _start_as_lookup(model.model.language_model)
    generation = model.generation_config
    generation.eos_token_id = processor.tokenizer.eos_token_id
    generation.pad_token_id = processor.tokenizer.pad_token_id
    generation.do_sample = False
    return model, processor
