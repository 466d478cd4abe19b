"""The decoder's layers for new tokens, in few launches: seven each for one row.

transformers' modules take some 45 launches per layer and token: norms, rotary embedding, the cache
and the gate each read and write a few kilobytes in several kernels. Here each weight is read by one
kernel that does its neighbours' work too (`sf.attention.kernels.linear`).

Shape suffixes: A rows in use, X width of the hidden states, D head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

from sf.attention.backends import backend_for
from sf.attention.decoding.buffers import DecodeCache

__all__ = ["LAYERS", "FusedLayers"]

LAYERS = (Qwen2DecoderLayer, Qwen2VLDecoderLayer, Qwen2_5_VLDecoderLayer)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATE = ("gate_proj", "up_proj", "down_proj")


class FusedLayers:
    """Decoder and head of a model, without autocast.

    Rounding differs from the modules': sums are ordered differently, and a norm is not rounded
    before its product. Use `of`, which returns None for a model with other modules.

    Args:
        decoder: with `LAYERS`. head: of the logits.
    """

    def __init__(self, decoder: Any, head: Any) -> None:
        self.decoder, self.head = decoder, head

    @classmethod
    def of(cls, decoder: Any, head: Any) -> FusedLayers | None:
        """The fused layers, or None where only the modules compute the same.

        This is so for adapters, quantised or hooked modules, other activations, mixed dtypes and
        sliding windows, and where the backend does not fuse.
        """
        fits = (
            type(head) is nn.Linear
            and head.bias is None
            and backend_for(head.weight.device).fuses
            and _unhooked(head)
            and _is_norm(decoder.norm)
            and all(_plain(layer) for layer in decoder.layers)
            and head.weight.dtype in _DTYPES
            and all(
                part.dtype == head.weight.dtype and part.is_contiguous()
                for part in (*decoder.parameters(), head.weight)
            )
        )
        return cls(decoder, head) if fits else None

    @property
    def usable(self) -> bool:
        """Whether the modules would compute in their weights' dtype, at this moment."""
        return not torch.is_autocast_enabled(self.head.weight.device.type)

    def logits(
        self, hidden_AX: Tensor, rotary: tuple[Tensor, Tensor], cache: DecodeCache
    ) -> Tensor:
        """Process one token per row and write its keys and values to the open entries.

        Args:
            hidden_AX: embeddings of the tokens.
            rotary: cosines and sines of the decoder's `rotary_emb`.

        Returns:
            (A, V) in the weights' dtype.
        """
        from sf.attention.kernels.linear import project
        from sf.attention.kernels.rotary import rotate_and_store

        backend = backend_for(hidden_AX.device)
        hidden = hidden_AX.contiguous()
        cos_AD, sin_AD = (_per_row(part, self.decoder) for part in rotary)
        for number, (layer, mask) in enumerate(zip(self.decoder.layers, cache.masks, strict=True)):
            attention, mlp = layer.self_attn, layer.mlp
            inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
            weights = [each.weight for each in inputs]
            biases = None if inputs[0].bias is None else [each.bias for each in inputs]
            projected = project(hidden, weights, biases, norm=_norm(layer.input_layernorm))
            key, value, entry = cache.open_buffers(number)
            query = rotate_and_store(projected, cos_AD, sin_AD, key, value, entry)
            width = mask.shape[-1]
            out = backend.decode(
                query[:, :, None], key[:, :, :width], value[:, :, :width], mask, attention.scaling
            )
            hidden = project(
                out.reshape(len(hidden), -1), [attention.o_proj.weight], residual=hidden
            )
            gates = [mlp.gate_proj.weight, mlp.up_proj.weight]
            norm = _norm(layer.post_attention_layernorm)
            inner = project(hidden, gates, norm=norm, gated=True)
            hidden = project(inner, [mlp.down_proj.weight], residual=hidden)
        return project(hidden, [self.head.weight], norm=_norm(self.decoder.norm))


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _per_row(part: Tensor, decoder: Any) -> Tensor:
    """(A, D): a token's cosines or sines.

    Early versions of transformers return the rotary components of the Qwen2-VL line separately,
    (3, A, 1, D), and combine them in the attention.
    """
    if part.ndim == 4:
        sections = 2 * list(decoder.config.rope_parameters["mrope_section"])
        pieces = part.split(sections, dim=-1)
        part = torch.cat([piece[at % 3] for at, piece in enumerate(pieces)], dim=-1)
    return part[:, 0].contiguous()


def _plain(layer: Any) -> bool:
    """Whether a layer consists of the modules whose work the kernels do."""
    if type(layer) not in LAYERS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linear: list[Any] = [getattr(attention, name, None) for name in _PROJECTIONS]
    linear += [getattr(mlp, name, None) for name in _GATE]
    if not all(type(each) is nn.Linear for each in linear):
        return False
    biased = [each.bias is not None for each in linear]
    activation = getattr(mlp, "act_fn", None)
    return (
        all(_unhooked(module) for module in layer.modules())
        and _is_norm(layer.input_layernorm)
        and _is_norm(layer.post_attention_layernorm)
        and biased[0] == biased[1] == biased[2]
        and not any(biased[3:])
        and isinstance(activation, (nn.SiLU, type(ACT2FN["silu"])))
        and attention.sliding_window is None
    )


def _is_norm(module: nn.Module) -> bool:
    """Whether it is the RMSNorm of the families of `LAYERS`, with the weight as a factor."""
    kind = type(module)
    family = kind.__module__.startswith("transformers.models.qwen2")
    return family and kind.__name__.endswith("RMSNorm") and _unhooked(module)


def _unhooked(module: nn.Module) -> bool:
    """Whether calling a module means calling its class's `forward`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module)
