"""The attention function that transformers calls in every decoder layer.

Shape suffixes: B rows, H heads, G KV heads, L new columns, P prompt columns, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sf.attention.backends import backend_for
from sf.attention.forward_state import ForwardState
from sf.attention.mask import DeferredMask, deferred_mask
from sf.errors import UnsupportedModelError

__all__ = ["NAME", "register"]

NAME = "sparsity_forcing"
# Arguments that change attention in ways that selection and gathering know nothing about.
_FOREIGN = ("softcap", "s_aux", "position_bias", "cache")


def register() -> None:
    """Make the implementation known to transformers, with its mask; harmless when repeated."""
    AttentionInterface.register(NAME, sparse_attention)
    AttentionMaskInterface.register(NAME, deferred_mask)


def sparse_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: DeferredMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    sparse_state: ForwardState | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer under the forward's plan.

    Args:
        query: (B, H, L, D) after rope. key, value: (B, G, ., D) after the cache's update.
        attention_mask: what `deferred_mask` returned.
        sparse_state: set by the decoder's pre-hook.

    Returns:
        (B, L, H, D), and the attention weights where a dense layer of the model returns them.

    Raises:
        UnsupportedModelError: the decoder does not hand keyword arguments on to its attention, or
            its attention is not plain causal softmax attention.
    """
    name = type(module).__name__
    layer = getattr(module, "layer_idx", None)
    if sparse_state is None or not isinstance(layer, int):
        raise UnsupportedModelError(
            "model", name, "its layers do not hand keyword arguments on to the attention function"
        )
    foreign = [key_ for key_ in _FOREIGN if kwargs.get(key_) is not None]
    if sliding_window is not None or foreign or kwargs.get("is_causal") is False:
        raise UnsupportedModelError(
            "model",
            f"{name} ({', '.join(foreign) or 'sliding window or not causal'})",
            "sparse attention stands in for plain causal softmax attention only",
        )
    sparse_state.seen.add(layer)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    def dense() -> tuple[Tensor, Tensor | None]:
        mask = attention_mask.build(sparse_state.dense) if attention_mask is not None else None
        run = _own_attention(module, sparse_state.dense)
        with _named(module, sparse_state.dense):
            return run(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)

    if sparse_state.kind == "dense":
        return dense()
    if sparse_state.kind == "continue":
        cached = sparse_state.cache_layer(layer)
        assert cached is not None
        mask = sparse_state.continue_mask(cached, query.shape[2])
        return backend_for(query.device).decode(query, key, value, mask, scaling), None
    return _prefill(sparse_state, layer, query, key, value, scaling, dropout, dense)


def _prefill(
    plan: ForwardState,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
    dense: Callable[[], tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor | None]:
    """Select on the prompt, attend among what is active, keep its K and V."""
    assert plan.valid is not None
    width = plan.valid.shape[1]
    layout = plan.layout(query, key, scaling, layer)
    index, lengths = layout.index, layout.lengths
    cached = plan.cache_layer(layer)
    if layout.full and (cached is None or min(lengths) == query.shape[2]):
        # Every row keeps everything: nothing to gather, nothing to prune.
        out, weights = dense()
        if cached is not None:
            cached.commit(key, value, width, plan.tail, None)
        return out, weights
    if layout.full:
        out, weights = dense()
        place = index[:, None, :, None]
        kept_key = key.gather(2, place.expand(-1, key.shape[1], -1, key.shape[3]))
        kept_value = value.gather(2, place.expand(-1, value.shape[1], -1, value.shape[3]))
    else:
        weights = None
        out, kept_key, kept_value = backend_for(query.device).prefill(
            query, key, value, index, lengths, scaling, dropout
        )
    if cached is not None:
        count = index.shape[1]
        real = None
        if min(lengths) < count:
            place = torch.arange(count, device=key.device)
            real = place >= count - layout.count[:, None]
            real = real[:, : count - plan.tail]
        cached.commit(kept_key, kept_value, width, plan.tail, real)
    return out, weights


@contextmanager
def _named(module: nn.Module, name: str) -> Iterator[None]:
    """The module's configuration names the implementation that runs.

    transformers' flash attention loads the package that this name stands for.
    """
    config = getattr(module, "config", None)
    before = getattr(config, "_attn_implementation", None)
    if config is None or before in (None, name):
        yield
        return
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def _own_attention(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The implementation the model would have used; "eager" lives beside its attention class."""
    own = AttentionInterface()
    if name in own:
        found: Callable[..., tuple[Tensor, Tensor | None]] = own[name]
        return found
    source = sys.modules[type(module).__module__]
    eager = getattr(source, "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedModelError(
            "model", type(module).__name__, f"its {name!r} attention cannot be found", "use sdpa"
        )
    return eager
