"""The models that run under sparse attention, and the extent of their tests."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SupportedModel", "supported_models"]


class SupportedModel(NamedTuple):
    """One of transformers' model types.

    Attributes:
        model_type: in config.json.
        name: its authors' name.
        trained: whether `sf run train` supports it; the others run under `sf.sparsify`.
        media: whether prompts with images or video are tested too, not only text.
    """

    model_type: str
    name: str
    trained: bool = False
    media: bool = False


_TRAINED = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "llava_onevision": "LLaVA-OneVision",
    "llava_next_video": "LLaVA-NeXT-Video",
}
_OTHERS = {
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL MoE",
    "internvl": "InternVL",
    "glm4v": "GLM-4.1V",
    "glm46v": "GLM-4.6V",
    "glm4v_moe": "GLM-4.5V",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "llava": "LLaVA",
    "llava_next": "LLaVA-NeXT",
    "mistral3": "Mistral Small 3.1",
    "ovis2": "Ovis2",
    "ernie4_5_vl_moe": "ERNIE 4.5 VL",
    "paddleocr_vl": "PaddleOCR-VL",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3",
    "llama": "Llama",
    "granite": "Granite",
    "phi3": "Phi-3",
    "glm4": "GLM-4",
}


def supported_models() -> tuple[SupportedModel, ...]:
    """Models whose sparse attention is tested with small random weights.

    At p = 1 they give the logits of dense attention bit for bit, and at p = 0.8 those of an
    independent float64 implementation. Other models run if their attention uses transformers'
    attention interface, and raise `UnsupportedModelError` if it does not.
    """
    rows = [SupportedModel(kind, name, trained=True, media=True) for kind, name in _TRAINED.items()]
    return (*rows, *(SupportedModel(kind, name) for kind, name in _OTHERS.items()))
