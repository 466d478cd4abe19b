"""Query and output projections of kept tokens only.

transformers' extension point for attention comes after the query projection and before the output
projection of all tokens. Both are wasted on dropped tokens: their queries are never asked (but for
the probes) and their output is zero. For the attention classes listed here another forward
replaces the module's own during prefill. It still projects keys and values of all tokens, which
selection needs.

Shape suffixes: B rows, L columns, N chosen columns, H heads, G KV heads, D head size, M model size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention

from sf.attention.forward_state import ForwardState
from sf.attention.layer import sparse_attention
from sf.attention.model_view import ModuleForward

__all__ = ["install", "uninstall"]

_SUPPORTED = (Qwen2Attention, Qwen2VLAttention, Qwen2_5_VLAttention)
# Shorter prompts spend more on choosing rows than their projections cost.
LEAST_COLUMNS = 512


def install(module: nn.Module) -> bool:
    """Replace the forward of an attention module; False if its class is unknown here."""
    known = type(module) in _SUPPORTED and "forward" not in vars(module)
    if known and getattr(module.o_proj, "bias", None) is None:
        vars(module)["forward"] = ModuleForward(module, _forward)
        return True
    return False


def uninstall(module: nn.Module) -> None:
    """Restore a module's own forward."""
    vars(module).pop("forward", None)


def _forward(
    module: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    state, hidden = kwargs.get("sparse_state"), kwargs.get("hidden_states")
    embeddings = kwargs.get("position_embeddings")
    if args or not isinstance(state, ForwardState) or hidden is None or embeddings is None:
        return original(*args, **kwargs)
    worth = state.kind == "prefill" and state.lean and hidden.shape[1] >= LEAST_COLUMNS
    if not worth or state.policy.keeps_all or embeddings[0].shape[:2] != hidden.shape[:2]:
        return original(**kwargs)
    return _prefill(module, original, state, hidden, embeddings, kwargs)


def _prefill(
    module: Any,
    original: Callable[..., Any],
    state: ForwardState,
    hidden_BLM: Tensor,
    embeddings: tuple[Tensor, Tensor],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The module's forward, with queries and outputs of the tokens that need them."""
    layer: int = module.layer_idx
    key_BGLD = _heads(module.k_proj(hidden_BLM), module.head_dim, *embeddings)
    query_BLHD = _Queries(module, hidden_BLM, embeddings)
    if state.policy.scores_at(layer) and layer not in state.kept:
        with torch.no_grad():
            query_BLHD.fill(state.probe_columns(hidden_BLM.device))
    layout = state.layout(query_BLHD.tensor.transpose(1, 2), key_BGLD, module.scaling, layer)
    if layout.full:
        return original(**kwargs)
    query_BLHD.fill(layout.index)
    value_BGLD = module.v_proj(hidden_BLM).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
    cache = kwargs.get("past_key_values")
    if cache is not None:
        key_BGLD, value_BGLD = cache.update(key_BGLD, value_BGLD, layer)
    passed = ("hidden_states", "attention_mask", "past_key_values", "position_embeddings")
    out_BLHD, weights = sparse_attention(
        module,
        query_BLHD.tensor.transpose(1, 2),
        key_BGLD,
        value_BGLD,
        kwargs.get("attention_mask"),
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=getattr(module, "sliding_window", None),
        **{name: value for name, value in kwargs.items() if name not in passed},
    )
    kept_BNM = module.o_proj(_take(out_BLHD.flatten(2), layout.index))
    return _put(torch.zeros_like(hidden_BLM), layout.index, kept_BNM), weights


class _Queries:
    """Queries of some columns, in a (B, L, H, D) tensor whose other columns are never read."""

    def __init__(self, module: Any, hidden_BLM: Tensor, embeddings: tuple[Tensor, Tensor]) -> None:
        self._module, self._hidden, self._embeddings = module, hidden_BLM, embeddings
        heads = module.config.num_attention_heads
        shape = (*hidden_BLM.shape[:2], heads, module.head_dim)
        self.tensor = hidden_BLM.new_empty(shape)

    def fill(self, index_BN: Tensor) -> None:
        """Project the queries of the columns at `index_BN`."""
        cos, sin = (_take(part, index_BN) for part in self._embeddings)
        part = self._module.q_proj(_take(self._hidden, index_BN))
        query_BHND = _heads(part, self._module.head_dim, cos, sin)
        _put(self.tensor, index_BN, query_BHND.transpose(1, 2))


def _heads(part_BNM: Tensor, size: int, cos_BND: Tensor, sin_BND: Tensor) -> Tensor:
    """Split into heads and rotate: (B, H, N, D); the arithmetic of `apply_rotary_pos_emb`."""
    part = part_BNM.unflatten(-1, (-1, size)).transpose(1, 2)
    first, second = part.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return part * cos_BND.unsqueeze(1) + turned * sin_BND.unsqueeze(1)


def _take(part_BLM: Tensor, index_BN: Tensor) -> Tensor:
    """Columns of each row."""
    if index_BN.shape[0] == 1:
        return part_BLM.index_select(1, index_BN[0])
    return part_BLM.gather(1, index_BN[..., None].expand(-1, -1, part_BLM.shape[2]))


def _put(full: Tensor, index_BN: Tensor, part: Tensor) -> Tensor:
    """Write columns of each row, in place."""
    if index_BN.shape[0] == 1:
        full[0].index_copy_(0, index_BN[0], part[0].to(full.dtype))
    else:
        place = index_BN.view(*index_BN.shape, *[1] * (part.ndim - 2)).expand_as(part)
        full.scatter_(1, place, part.to(full.dtype))
    return full
