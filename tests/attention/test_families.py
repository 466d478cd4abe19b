"""Every family that `sf.supported_models` names: dense at p = 1, the float64 oracle at p = 0.8.

Models have two small layers with random weights. Their configurations are those of transformers
with smaller sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from oracle import MaskForm
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

import sf
from sf import FixedMask, TopP, sparsify
from sf.attention.decoder_hooks import find_decoder

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HOLDERS = {
    **{"image_token_id": 125, "video_token_id": 124},
    **{"image_token_index": 125, "video_token_index": 124},
}
TEXT: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 128},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **{"moe_intermediate_size": 32, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **TOKENS,
    **HOLDERS,
}
VISION: dict[str, Any] = {
    **dict.fromkeys(("depth", "num_hidden_layers", "num_layers", "layers"), 2),
    **dict.fromkeys(("hidden_size", "embed_dim", "width"), 32),
    **dict.fromkeys(("num_heads", "num_attention_heads", "heads"), 2),
    **{"intermediate_size": 48, "out_hidden_size": 64, "projection_dim": 64},
    **{"fullatt_block_indexes": [1], "deepstack_visual_indexes": [0]},
    **{"image_size": 56, "patch_size": 14},
}
# Rotary components of heads of 16, halved where only half of a head is turned.
ROTARY = {
    **{kind: [2, 3, 3] for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")},
    **{kind: [1, 1, 2] for kind in ("glm4v", "glm46v", "glm4v_moe")},
    "paddleocr_vl": [2, 3, 3],
    "ernie4_5_vl_moe": [3, 3, 2],
}


def put(config: Any, values: Mapping[str, Any]) -> None:
    """Set what the configuration has; a list if it holds the value as a list of equal entries."""
    for name, value in values.items():
        before = getattr(config, name, None)
        if before is not None:
            several = isinstance(before, list | tuple) and not isinstance(value, list)
            setattr(config, name, [value] * len(before) if several else value)


def small(kind: str) -> Any:
    """A model of a type, with its own configuration at a small size."""
    config = CONFIG_MAPPING[kind]()
    text = config.get_text_config()
    put(text, TEXT)
    if text is not config:
        put(config, {**HOLDERS, "hidden_size": 64})
    if getattr(text, "layer_types", None):
        text.layer_types = ["full_attention"] * text.num_hidden_layers
    if kind in ROTARY:
        half = {"partial_rotary_factor": 0.5} if kind.startswith("glm") else {}
        text.rope_parameters = {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": ROTARY[kind], **half
        }  # fmt: skip
    vision = getattr(config, "vision_config", None)
    if vision is not None:
        pair = isinstance(getattr(vision, "patch_size", None), list | tuple)
        put(
            vision, {**VISION, **({"image_size": [56, 56], "patch_size": [14, 14]} if pair else {})}
        )
    torch.manual_seed(0)
    many = AutoModelForCausalLM if vision is None else AutoModelForImageTextToText
    return many.from_config(config, experts_implementation="eager").double().eval()


@pytest.mark.parametrize("kind", [model.model_type for model in sf.supported_models()])
@torch.no_grad()
def test_dense_at_one_and_the_oracle_below(kind: str) -> None:
    model = small(kind)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 120, (2, 40), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    single = {name: value[1:] for name, value in given.items() if name != "use_cache"}
    dense = model(**single, use_cache=False).logits
    with sparsify(model, TopP(p=1.0)):
        assert torch.equal(model(**single, use_cache=False).logits, dense)

    with sparsify(model, TopP(p=0.8)) as trace:
        sparse = model(**given).logits
    kept = trace.kept
    assert 0.1 < float(trace.token_ratio.mean()) < 0.95
    form = MaskForm([0.8, 0.8], ids.shape[1])
    AttentionInterface.register("mask_form", form.attention)
    AttentionMaskInterface.register("mask_form", form.mask)
    _, decoder = find_decoder(model)
    decoder.set_attn_implementation("mask_form")
    try:
        expected = model(**given).logits
    finally:
        decoder.set_attn_implementation("sdpa")
    assert all(torch.equal(own, form.kept[layer]) for layer, own in enumerate(kept))
    last = mask.bool()
    assert (sparse[last] - expected[last]).abs().max() < 1e-9
    with sparsify(model, FixedMask(kept)):
        assert torch.allclose(model(**given).logits, sparse, atol=1e-12)


def test_the_list_names_each_type_once() -> None:
    kinds = [model.model_type for model in sf.supported_models()]
    assert len(set(kinds)) == len(kinds) > 20
    assert {model.model_type for model in sf.supported_models() if model.trained} == {
        "qwen2_vl",
        "qwen2_5_vl",
        "llava_onevision",
        "llava_next_video",
    }
