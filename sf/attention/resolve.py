"""A checkpoint under a selection of tokens, or under the attention that it was trained with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from sf.attention.blocks import BlockAttention, Replacement, trained_attention
from sf.attention.sparsify import sparsify
from sf.attention.trace import Trace
from sf.selection import Policy, TopP

__all__ = ["level_of", "running"]


def level_of(model: Any, p: float) -> Policy | BlockAttention | None:
    """One point of a checkpoint's curve from few tokens to all.

    Args:
        model: the checkpoint.
        p: in (0, 1]. Top-p's threshold, None (dense attention) at 1; for a checkpoint trained with
            MoBA or NSA the share of the blocks before it that each query reads.
    """
    trained = trained_attention(model.config)
    if trained is not None:
        return trained.at_share(p)
    return None if p == 1 else TopP(p=p)


def running(
    model: nn.Module, attention: Policy | BlockAttention | None
) -> AbstractContextManager[Trace | None]:
    """A context with `model` under `attention`; its trace, or None for the model's own."""
    if attention is None:
        return nullcontext()
    if isinstance(attention, BlockAttention):
        return Replacement(model, attention)
    return sparsify(model, attention)
