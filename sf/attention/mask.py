"""The attention mask that transformers asks for, built only if a dense layer needs it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from sf.errors import UnsupportedModelError

__all__ = ["DeferredMask", "deferred_mask"]


class DeferredMask:
    """A request for a causal mask.

    A padded prompt's (batch, 1, L, L) mask costs more memory than sparse attention itself, which
    needs only the 2D padding mask. The dense path builds exactly what the model's own
    implementation would have been given, once for all layers.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._built: dict[str, Tensor | None] = {}

    def build(self, implementation: str) -> Tensor | None:
        """The mask in the form of a registered attention implementation ("sdpa", "eager", ...)."""
        if implementation not in self._built:
            masks = AttentionMaskInterface()
            if implementation not in masks:
                return None
            self._built[implementation] = masks[implementation](**self._request)
        return self._built[implementation]


def deferred_mask(**request: Any) -> DeferredMask:
    """The mask function registered for sparse attention.

    Raises:
        UnsupportedModelError: the model asks for something else than a causal mask.
    """
    if request.get("mask_function", causal_mask_function) is not causal_mask_function:
        raise UnsupportedModelError(
            "attention mask",
            getattr(request["mask_function"], "__qualname__", None),
            "sparse attention is causal: packed sequences, sliding windows and blocks are not",
            "pass a 2D attention_mask and no packed position_ids",
        )
    return DeferredMask(request)
