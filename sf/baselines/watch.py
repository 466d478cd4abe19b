"""Reads prompt lengths off a model that runs its own dense decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sf.attention import Trace
from sf.errors import UnsupportedModelError

__all__ = ["watching"]


def _prompt_mask(kwargs: dict[str, Any]) -> tuple[Tensor, int]:
    """The decoder's padding mask as bool (B, past + L), and L, from its keyword arguments."""
    inputs = kwargs.get("inputs_embeds")
    inputs = kwargs.get("input_ids") if inputs is None else inputs
    if inputs is None:
        raise UnsupportedModelError(
            "model", None, "its decoder is not called with keyword arguments"
        )
    batch, length = inputs.shape[:2]
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.bool(), length
    return torch.ones(batch, length, dtype=torch.bool, device=inputs.device), length


@contextmanager
def watching(model: Any, trace: Trace) -> Iterator[None]:
    """Fill `trace` as if every layer kept every token: prompt lengths, and what decoding adds.

    A forward on an empty cache is a prompt.
    """
    decoder: nn.Module = model.get_decoder()
    layers = int(decoder.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]

    def after(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        mask, length = _prompt_mask(kwargs)
        cache = getattr(output, "past_key_values", None)
        total = length if cache is None else int(cache.get_seq_length())
        if total == length:
            trace.valid, trace.appended, trace.whole_kv = mask, 0, True
            trace.kept = [mask] * layers
        elif trace.valid is not None:
            trace.appended = total - trace.valid.shape[1]

    hook = decoder.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
