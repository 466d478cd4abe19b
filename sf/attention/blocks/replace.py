"""A decoder whose attention is another one, for as long as a context lasts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sf.attention.blocks.attend import Place
from sf.attention.layer import NAME as SPARSE
from sf.attention.mask import deferred_mask
from sf.attention.sparsify import find_decoder
from sf.attention.trace import PairTrace
from sf.errors import ConfigError, UnsupportedModelError

__all__ = ["BlockAttention", "Forward", "Replacement"]

NAME = "block_attention"


@dataclass(frozen=True)
class BlockAttention(ABC):
    """A causal attention whose queries each read some blocks of keys.

    Attributes:
        share: in (0, 1], instead of a number of blocks: that share of the blocks that begin at or
            before the query, rounded up. 0: the number.
    """

    share: float = field(default=0.0, kw_only=True)

    def at_share(self, share: float) -> Self:
        """The same attention reading another share of the blocks."""
        return replace(self, share=share)

    def most(self, number: int, own_BL: Tensor) -> Tensor:
        """int64 (B, 1, L, 1), blocks that queries in the blocks `own_BL` read at most."""
        if not self.share:
            return torch.full_like(own_BL, number)[:, None, :, None]
        return ((own_BL + 1) * self.share).ceil().long()[:, None, :, None]

    def check(self, modules: Sequence[Any]) -> None:
        """Raise ConfigError where the decoder's attention modules lack what the method needs."""
        return

    def gates(self, module: Any, hidden_BLM: Tensor) -> Tensor | None:
        """What the method makes of a layer's input, handed to `attend`."""
        return None

    @abstractmethod
    def attend(
        self,
        module: Any,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        scaling: float,
        forward: Forward,
        gates: Tensor | None,
    ) -> Tensor:
        """(B, H, L, D); keys and values are aligned. Tells `forward.count` what was read."""


@dataclass
class Forward:
    """One forward of the decoder: what its layers share.

    Attributes:
        attention: the method.
        valid: bool (B, S), False on padding; the queries are the last `queries` columns.
        place: where queries and keys stand in their rows.
        prompt: how many of the queries, from the first, are of the prompt.
        pairs: layer -> float64 (B,), entries that the prompt's queries read, mean over heads.
    """

    attention: BlockAttention
    valid: Tensor
    queries: int
    prompt: int
    place: Place
    pairs: dict[int, Tensor] = field(default_factory=dict)

    def count(self, layer: int, read_BCL: Tensor) -> None:
        """Note how many entries each query of a layer read."""
        asked = self.valid[:, -self.queries :].clone()
        asked[:, self.prompt :] = False
        read = read_BCL.double().mean(1).masked_fill(~asked, 0.0)
        self.pairs[layer] = read.sum(-1)


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    block_forward: Forward | None = None,
    block_gates: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every decoder layer.

    Raises:
        UnsupportedModelError: keyword arguments do not reach it, or the attention or the cache is
            not a plain one.
    """
    name = type(module).__name__
    if block_forward is None or not isinstance(getattr(module, "layer_idx", None), int):
        rule = "its layers do not hand keyword arguments on to the attention function"
        raise UnsupportedModelError("model", name, rule)
    if sliding_window is not None or dropout or kwargs.get("is_causal") is False:
        rule = "block attention stands in for causal attention without dropout or windows"
        raise UnsupportedModelError("model", name, rule)
    if key.shape[2] != block_forward.valid.shape[1]:
        rule = f"holds {key.shape[2]} columns for {block_forward.valid.shape[1]} tokens"
        raise UnsupportedModelError("cache", name, rule, "use a plain DynamicCache")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    align = block_forward.place.align
    out = block_forward.attention.attend(
        module, query, align(key), align(value), scaling, block_forward, block_gates
    )
    return out.transpose(1, 2), None


class Replacement:
    """Runs a model's decoder with another attention, from `open` to `close` or as a context.

    The key-value cache is the model's own and whole. Layers may be recomputed (gradient
    checkpointing) until it is closed.

    Args:
        model: a transformers model, perhaps PEFT-wrapped.
        attention: the method.
        prompt_width: columns of the prompt in a forward over prompt and completion; by default all
            columns of a forward on an empty cache are prompt. May be changed between forwards.

    Attributes:
        trace: of the last prompt.
    """

    def __init__(
        self, model: nn.Module, attention: BlockAttention, prompt_width: int | None = None
    ) -> None:
        _, self._decoder = find_decoder(model)
        self._attention, self.prompt_width = attention, prompt_width
        self._modules: list[Any] = [layer.self_attn for layer in self._decoder.layers]  # type: ignore[union-attr]
        attention.check(self._modules)
        self.trace = PairTrace()
        self._forward: Forward | None = None
        self._own: str | None = None
        self._hooks: list[Any] = []

    def open(self) -> PairTrace:
        """Replace the attention.

        Raises:
            ConfigError: it is already replaced, here or by `sparsify`.
        """
        own = str(self._decoder.config._attn_implementation)
        if own in (NAME, SPARSE):
            rule = "its attention is already replaced"
            name = type(self._decoder).__name__
            raise ConfigError("model", name, rule, "leave the other context first")
        AttentionInterface.register(NAME, block_attention)
        AttentionMaskInterface.register(NAME, deferred_mask)
        self._decoder.set_attn_implementation(NAME)
        self._own = own
        self._hooks = [
            self._decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            self._decoder.register_forward_hook(self._after, with_kwargs=True),
            *(m.register_forward_pre_hook(self._gates, with_kwargs=True) for m in self._modules),
        ]
        return self.trace

    def close(self) -> None:
        """Give the model back as it was; harmless when repeated."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._own is not None:
            self._decoder.set_attn_implementation(self._own)
        self._own = None

    def __enter__(self) -> PairTrace:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        valid, length = _valid(kwargs)
        past = valid.shape[1] - length
        prompt = 0 if past else min(length, self.prompt_width or length)
        place = Place.of(valid, length)
        self._forward = Forward(self._attention, valid, length, prompt, place)
        return args, kwargs | {"block_forward": self._forward}

    def _gates(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return args, kwargs | {"block_gates": self._attention.gates(module, hidden)}

    def _after(self, _: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        forward, trace, layers = self._forward, self.trace, len(self._modules)
        self._forward = None
        assert forward is not None
        if len(forward.pairs) != layers:
            rule = f"{len(forward.pairs)} of {layers} layers used the attention interface"
            raise UnsupportedModelError("model", type(self._decoder).__name__, rule)
        if forward.prompt:
            trace.valid = forward.valid[:, : forward.prompt]
            trace.appended, trace.whole_kv = forward.queries - forward.prompt, True
            trace.kept = [trace.valid] * layers
            trace.pairs = [forward.pairs[layer] for layer in range(layers)]
        elif trace.valid is not None:
            trace.appended = forward.valid.shape[1] - trace.valid.shape[1]


def _valid(kwargs: dict[str, Any]) -> tuple[Tensor, int]:
    """bool (B, past + L), False on padding, and L."""
    inputs = kwargs.get("inputs_embeds")
    inputs = kwargs.get("input_ids") if inputs is None else inputs
    if inputs is None:
        rule = "its decoder is not called with keyword arguments"
        raise UnsupportedModelError("model", None, rule)
    batch, length = inputs.shape[:2]
    cache = kwargs.get("past_key_values")
    total = length + (0 if cache is None else int(cache.get_seq_length()))
    mask = kwargs.get("attention_mask")
    if mask is None:
        return torch.ones(batch, total, dtype=torch.bool, device=inputs.device), length
    if not isinstance(mask, Tensor) or mask.shape != (batch, total):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        rule = f"must be a 2D padding mask over {total} columns"
        raise ConfigError("attention_mask", shape, rule, "pass the tokenizer's attention_mask")
    return mask.bool(), length
