"""The attention function that transformers calls in every decoder layer.

Shape suffixes: B rows, H heads, G KV heads, L new columns, P prompt columns, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sf.attention.backends import backend_for
from sf.attention.forward_state import ForwardState
from sf.attention.mask import DeferredMask, deferred_mask
from sf.errors import UnsupportedModelError

__all__ = ["NAME", "own_attention", "register", "sparse_attention"]

NAME = "sparsity_forcing"
Observer = Callable[[ForwardState, int, Tensor, Tensor, float, Tensor], Tensor]
# Arguments that change attention in ways that selection and gathering know nothing about.
_FOREIGN = ("softcap", "s_aux", "position_bias", "cache")


def register() -> None:
    """Register the implementation and its mask with transformers; idempotent."""
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
    sparsity_term: Observer | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer under the forward's state.

    Args:
        query: (B, H, L, D) after rope. key, value: (B, G, ., D) after the cache's update.
        attention_mask: what `deferred_mask` returned.
        sparse_state: set by the decoder's pre-hook.
        sparsity_term: given the layer's state, index, queries, keys, scaling and output, returns
            the output with a gradient of its own (`sf.training.pathwise`).

    Returns:
        (B, L, H, D), and the attention weights where a dense layer of the model returns them.

    Raises:
        UnsupportedModelError: the decoder does not pass keyword arguments to its attention, or
            its attention is not plain causal softmax attention.
    """
    name = type(module).__name__
    layer = getattr(module, "layer_idx", None)
    if sparse_state is None or not isinstance(layer, int):
        raise UnsupportedModelError(
            "model",
            name,
            "its layers do not pass keyword arguments to the attention function",
            "call the model itself, not its `forward`; otherwise use another decoder",
        )
    foreign = [key_ for key_ in _FOREIGN if kwargs.get(key_) is not None]
    if sliding_window is not None or foreign or kwargs.get("is_causal") is False:
        raise UnsupportedModelError(
            "model",
            f"{name} ({', '.join(foreign) or 'sliding window or not causal'})",
            "sparse attention can replace only plain causal softmax attention",
        )
    sparse_state.seen.add(layer)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    def dense() -> tuple[Tensor, Tensor | None]:
        given = {"dropout": dropout, "scaling": scaling, **kwargs}
        return own_attention(module, query, key, value, attention_mask, **given)

    weights: Tensor | None = None
    if sparse_state.kind == "dense":
        out, weights = dense()
    elif sparse_state.kind == "continue":
        cached = sparse_state.cache_layer(layer)
        assert cached is not None
        mask = sparse_state.continue_mask(cached, query.shape[2])
        out = backend_for(query.device).decode(query, key, value, mask, scaling)
    else:
        out, weights = _prefill(sparse_state, layer, query, key, value, scaling, dropout, dense)
    if sparsity_term is not None:
        out = sparsity_term(sparse_state, layer, query, key, scaling, out)
    return out, weights


def _prefill(
    state: ForwardState,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
    dense: Callable[[], tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor | None]:
    """Select on the prompt, attend among the active tokens, keep their K and V."""
    assert state.valid is not None
    width = state.valid.shape[1]
    layout = state.layout(query, key, scaling, layer)
    index, lengths = layout.index, layout.lengths
    cached = state.cache_layer(layer)
    if layout.full and (cached is None or min(lengths) == query.shape[2]):
        # Every row keeps everything: nothing to gather, nothing to prune.
        out, weights = dense()
        if cached is not None:
            cached.commit(key, value, width, state.tail, None, state.valid[:, -1])
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
            real = real[:, : count - state.tail]
        cached.commit(kept_key, kept_value, width, state.tail, real, state.valid[:, -1])
    return out, weights


def own_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention, with its implementation and mask."""
    view = module.config
    config = getattr(view, "viewed", view)
    name = str(config._attn_implementation)
    if isinstance(mask, DeferredMask):
        mask = mask.build(name)
    run = _implementation(module, name)
    if name in ("sdpa", "eager"):
        return run(module, query, key, value, mask, **kwargs)
    # transformers' flash attention loads the package that the module's configuration names.
    vars(module)["config"] = config
    try:
        return run(module, query, key, value, mask, **kwargs)
    finally:
        vars(module)["config"] = view


def _implementation(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A registered attention function; "eager" is in the module of the class."""
    own = AttentionInterface()
    if name in own:
        function: Callable[..., tuple[Tensor, Tensor | None]] = own[name]
        return function
    source = sys.modules[type(module).__module__]
    eager = getattr(source, "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedModelError(
            "model", type(module).__name__, f"its {name!r} attention cannot be found", "use sdpa"
        )
    return eager
