"""A Qwen2 decoder in float64 NumPy for one unpadded row, written slowly, with places to interfere.

Shares no code with `sf`; of transformers only the weights and the positions. Shapes: L tokens, M
model size, H query heads, G KV heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Weights = np.ndarray


def softmax(score: np.ndarray) -> np.ndarray:
    weight = np.exp(score - score.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


@dataclass
class Inputs:
    """The decoder's inputs: embeddings (L, M) and positions (3, L) of prompt and reply."""

    embeds: np.ndarray
    positions: np.ndarray
    prompt: int
    output: object


def record(model, run) -> Inputs:
    """Embeddings and positions of a generation's forwards, one after the other."""
    embeds, positions = [], []

    def note(module, args, kwargs):
        given = kwargs["inputs_embeds"]
        given = model.get_input_embeddings()(kwargs["input_ids"]) if given is None else given
        embeds.append(given[0].detach().double().numpy())
        place = kwargs["position_ids"]
        positions.append(place.reshape(-1, 1, given.shape[1])[-3:, 0].numpy())

    hook = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        output = run()
    finally:
        hook.remove()
    spread = [np.broadcast_to(place, (3, place.shape[1])) for place in positions]
    return Inputs(np.concatenate(embeds), np.concatenate(spread, 1), len(embeds[0]), output)


def norm(part: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return part / np.sqrt((part**2).mean(-1, keepdims=True) + eps) * weight


def rotate(part_HLD: np.ndarray, positions: np.ndarray, theta: float, sections: list[int]):
    """Rotate channels c and c + D/2 together; the section determines which position applies."""
    half = part_HLD.shape[-1] // 2
    axis = [index for index, size in enumerate(sections) for _ in range(size)]
    out = np.empty_like(part_HLD)
    for c in range(half):
        angle = positions[axis[c]] / theta ** (2 * c / (2 * half))
        cos, sin = np.cos(angle), np.sin(angle)
        first, second = part_HLD[..., c], part_HLD[..., c + half]
        out[..., c] = first * cos - second * sin
        out[..., c + half] = second * cos + first * sin
    return out


def decode(
    model,
    inputs: Inputs,
    *,
    mask_of: Callable[[int, np.ndarray, np.ndarray], np.ndarray] | None = None,
    survivors: Callable[[int, np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the tokens that are left at the end, and their columns.

    Args:
        mask_of: (layer, query (H, L, D), key (G, L, D)) -> bool (H, L, L) of allowed pairs,
            in addition to causality. A query without any gets zeros.
        survivors: (layer, weights (H, L, L), columns (L,)) -> indices of the tokens that go on.
    """
    config = model.config.get_text_config()
    decoder = model.get_decoder()
    state = {name: part.detach().double().numpy() for name, part in decoder.state_dict().items()}
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    rope = config.rope_parameters
    sections = rope.get("mrope_section", [size // 2, 0, 0])
    hidden, positions = inputs.embeds, inputs.positions
    columns = np.arange(len(hidden))
    for layer in range(config.num_hidden_layers):
        name = f"layers.{layer}."

        def linear(part, which, name=name):
            product = part @ state[f"{name}{which}.weight"].T
            return product + state.get(f"{name}{which}.bias", 0.0)

        normed = norm(hidden, state[f"{name}input_layernorm.weight"], config.rms_norm_eps)
        q, k, v = (
            linear(normed, f"self_attn.{part}_proj")
            .reshape(len(hidden), -1, size)
            .transpose(1, 0, 2)
            for part in "qkv"
        )
        q, k = (rotate(part, positions, rope["rope_theta"], sections) for part in (q, k))
        allowed = np.tril(np.ones((heads, len(hidden), len(hidden)), dtype=bool))
        if mask_of is not None:
            allowed &= mask_of(layer, q, k)
        share = heads // groups
        score = np.stack([q[h] @ k[h // share].T for h in range(heads)]) / math.sqrt(size)
        weights = softmax(np.where(allowed, score, -1e300)) * allowed.any(-1, keepdims=True)
        mixed = np.stack([weights[h] @ v[h // share] for h in range(heads)], 1)
        hidden = hidden + linear(mixed.reshape(len(hidden), -1), "self_attn.o_proj")
        normed = norm(hidden, state[f"{name}post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = linear(normed, "mlp.gate_proj")
        hidden = hidden + linear(
            gate / (1 + np.exp(-gate)) * linear(normed, "mlp.up_proj"), "mlp.down_proj"
        )
        if survivors is not None:
            left = survivors(layer, weights, columns)
            hidden, positions, columns = hidden[left], positions[:, left], columns[left]
    hidden = norm(hidden, state["norm.weight"], config.rms_norm_eps)
    return hidden @ model.lm_head.weight.detach().double().numpy().T, columns


def reply_logits(logits: np.ndarray, columns: np.ndarray, inputs: Inputs) -> torch.Tensor:
    """Logits of the prompt's last token and of the reply's tokens that were fed back."""
    return torch.from_numpy(logits[columns >= inputs.prompt - 1])
