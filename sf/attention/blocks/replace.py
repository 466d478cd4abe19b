"""A context that replaces a decoder's attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache

from sf.attention.blocks.attend import Place
from sf.attention.blocks.kinds import Kinds
from sf.attention.decoder_hooks import Call, DecoderHooks, find_decoder
from sf.attention.layer import own_attention
from sf.attention.mask import deferred_mask
from sf.attention.trace import PairTrace
from sf.attention.visual_tokens import placeholder_ids
from sf.errors import ConfigError, UnsupportedModelError

__all__ = ["BlockAttention", "Forward", "Replacement", "attach"]

NAME = "block_attention"


@dataclass(frozen=True)
class BlockAttention(ABC):
    """A causal attention whose queries each read some blocks of keys.

    Attributes:
        token_ratio: in (0, 1], the token ratio of every prompt, as far as blocks of this size
            allow, instead of a number of blocks. A query at position t then reads about
            token_ratio² (t + 1) keys, which add up to the pairs of dense attention among that share
            of the tokens. 0 for a fixed number of blocks.
        weights: name of the weights that the method adds to every attention module; empty: none.
        reads_kinds: whether visual tokens and text attend differently (`Forward.kinds`).
    """

    weights: ClassVar[str] = ""
    reads_kinds: ClassVar[bool] = False

    token_ratio: float = field(default=0.0, kw_only=True)

    def most(
        self, number: int, position_BL: Tensor, size: int, besides_BL: Tensor | int = 0
    ) -> Tensor:
        """int64 (B, 1, L, 1), the largest number of blocks that a query reads, including its own.

        Args:
            number: of blocks, if no token ratio is set.
            position_BL: of the queries in their rows.
            size: tokens per block.
            besides_BL: further entries that a query reads.
        """
        if not self.token_ratio:
            return torch.full_like(position_BL, number)[:, None, :, None]
        wanted = self.token_ratio**2 * (position_BL.double() + 1)
        further = (wanted - besides_BL - position_BL % size - 1) / size
        return (1 + further.round().clamp(min=0)).long()[:, None, :, None]

    def check(self, modules: Sequence[Any]) -> None:
        """Raise ConfigError if the decoder's attention modules lack weights of the method."""
        if self.weights and not all(hasattr(module, self.weights) for module in modules):
            rule = f"has no weights of {self.weights}: the method needs training"
            remedy = f"train it: objective {self.weights}"
            raise ConfigError("model", type(modules[0]).__name__, rule, remedy)

    def new_weights(self, hidden: int, heads: int, size: int) -> nn.Module:
        """Newly initialised `weights` of one attention module.

        Args:
            hidden: of the model. heads: attention heads. size: of a head.
        """
        raise NotImplementedError(f"{type(self).__name__} adds no weights")

    def applies(self, call: Call, kinds: Kinds | None) -> bool:
        """Whether a forward pass uses this attention rather than the model's own.

        Args:
            kinds: see `Forward`.
        """
        return True

    def gates(self, module: Any, hidden_BLM: Tensor, forward: Forward) -> Tensor | None:
        """Values computed from a layer's input and passed to `attend`."""
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
        """(B, H, L, D); keys and values are aligned. Reports its reads to `forward.count`."""


@dataclass
class Forward:
    """The state shared by the layers in one forward pass of the decoder.

    Attributes:
        attention: the method.
        valid: bool (B, S), False on padding; the queries are the last `queries` columns.
        place: positions of queries and keys in their rows.
        prompt: number of leading queries that belong to the prompt.
        own: whether the model's own attention runs.
        pairs: layer -> float64 (B,), entries read by the prompt's queries, mean over heads.
        kinds: the queries that are visual tokens and the others, of an attention that reads them;
            None: no query is a visual token, or the attention treats all alike.
    """

    attention: BlockAttention
    valid: Tensor
    queries: int
    prompt: int
    place: Place
    own: bool = False
    pairs: dict[int, Tensor] = field(default_factory=dict)
    kinds: Kinds | None = None

    def count(self, layer: int, read_BCL: Tensor) -> None:
        """Record the number of entries that each query of a layer read."""
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
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls in every decoder layer.

    Raises:
        UnsupportedModelError: keyword arguments do not reach it, or the attention or the cache is
            not a standard one.
    """
    name = type(module).__name__
    if block_forward is None or not isinstance(getattr(module, "layer_idx", None), int):
        rule = "its layers do not pass keyword arguments to the attention function"
        remedy = "call the model itself, not its `forward`; otherwise use another decoder"
        raise UnsupportedModelError("model", name, rule, remedy)
    if sliding_window is not None or dropout or kwargs.get("is_causal") is False:
        rule = "block attention can replace only causal attention without dropout or windows"
        raise UnsupportedModelError("model", name, rule)
    if key.shape[2] != block_forward.valid.shape[1]:
        rule = f"has {key.shape[2]} columns for {block_forward.valid.shape[1]} tokens"
        raise UnsupportedModelError("cache", name, rule, "use a plain DynamicCache")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if block_forward.own:
        read = block_forward.place.position[:, None] + 1
        block_forward.count(module.layer_idx, read)  # type: ignore[arg-type]
        given = {"dropout": dropout, "scaling": scaling, **kwargs}
        return own_attention(module, query, key, value, attention_mask, **given)
    align = block_forward.place.align
    out = block_forward.attention.attend(
        module, query, align(key), align(value), scaling, block_forward, block_gates
    )
    return out.transpose(1, 2), None


def attach(model: nn.Module, attention: BlockAttention) -> None:
    """Add newly initialised weights of a method to every attention module of the decoder.

    Raises:
        UnsupportedModelError: modules without the projections that determine the sizes.
    """
    _, decoder = find_decoder(model)
    for layer in decoder.get_submodule("layers").children():
        module: Any = layer.self_attn
        if not all(hasattr(module, name) for name in ("k_proj", "head_dim", "config")):
            rule = f"{attention.weights} needs to know its head size and projections"
            raise UnsupportedModelError("model", type(module).__name__, rule)
        config, like = module.config, module.k_proj.weight
        sizes = (config.hidden_size, config.num_attention_heads, module.head_dim)
        weights = attention.new_weights(*sizes)
        module.add_module(attention.weights, weights.to(like.device, like.dtype))


class Replacement(DecoderHooks[PairTrace]):
    """Runs a model's decoder with another attention, from `open` to `close` or as a context.

    The key-value cache is the model's own, unpruned cache. Layers may be recomputed (gradient
    checkpointing) until it is closed.

    Args:
        model: a transformers model, also PEFT-wrapped.
        attention: the method.
        prompt_width: see `DecoderHooks`.
        trace: filled by each prompt.
    """

    implementation = NAME

    def __init__(
        self,
        model: nn.Module,
        attention: BlockAttention,
        prompt_width: int | None = None,
        trace: PairTrace | None = None,
    ) -> None:
        super().__init__(model, PairTrace() if trace is None else trace, prompt_width)
        self.attention = attention
        self._visual_ids = placeholder_ids(self.owner) if attention.reads_kinds else None
        attention.check([layer.self_attn for layer in self.layers])

    def open(self) -> PairTrace:
        AttentionInterface.register(NAME, block_attention)
        AttentionMaskInterface.register(NAME, deferred_mask)
        super().open()
        for layer in self.layers:
            self._hook(layer.self_attn.register_forward_pre_hook(self._gates, with_kwargs=True))
        return self.trace

    def check(self, given: Mapping[str, Any]) -> None:
        asked = given.get("output_attentions")
        if self.decoder.config.output_attentions if asked is None else asked:
            rule = "block attention computes no attention weights"
            raise ConfigError("output_attentions", True, rule, "omit it")
        cache, kind = given.get("past_key_values"), given.get("cache_implementation")
        fixed = isinstance(cache, Cache) and cache.is_compileable
        if fixed or kind not in (None, "dynamic", "dynamic_full"):
            given_cache = kind or type(cache).__name__
            rule = "block attention needs a cache of exactly the previous tokens"
            raise ConfigError("cache", given_cache, rule, "use the default cache")

    def before(self, call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
        valid, kinds = call.valid, self._kinds(call)
        prompt = 0 if call.past else min(call.length, self.prompt_columns(call.length))
        place, own = Place.of(valid, call.length), not self.attention.applies(call, kinds)
        forward = Forward(self.attention, valid, call.length, prompt, place, own, kinds=kinds)
        return kwargs | {"block_forward": forward}

    def _early(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._early(owner, args, kwargs)
        if self.is_open and self._visual_ids is not None:
            self._thread.input_ids = kwargs.get("input_ids", args[0] if args else None)

    def _kinds(self, call: Call) -> Kinds | None:
        """The visual tokens among the queries, from the ids that the model was called with.

        Raises:
            ConfigError: it was called with embeddings instead, or visual tokens follow a cache.
        """
        if self._visual_ids is None or (call.past and call.length == 1):
            return None
        ids, self._thread.input_ids = getattr(self._thread, "input_ids", None), None
        if ids is None or ids.shape != (call.batch, call.length):
            rule = "the prompt's token ids say which tokens are visual"
            raise ConfigError("input_ids", None, rule, "call the model with input_ids")
        visual = torch.isin(ids, self._visual_ids.to(ids.device)).to(call.device)
        visual = visual & call.valid[:, -call.length :]
        if not bool(visual.any()):
            return None
        if call.past:
            rule = (
                "visual tokens follow a cached prompt, whose visual tokens are not known any more"
            )
            raise ConfigError("input_ids", None, rule, "pass the whole conversation as one prompt")
        return Kinds.of(visual, call.valid)

    def _gates(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        forward: Forward | None = kwargs.get("block_forward")
        if not self.is_open or forward is None or forward.own:
            return None
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return args, kwargs | {"block_gates": self.attention.gates(module, hidden, forward)}

    def after(self, kwargs: dict[str, Any], output: Any) -> None:
        forward: Forward = kwargs["block_forward"]
        self.require_layers(len(forward.pairs))
        if forward.prompt:
            layers = len(self.layers)
            valid = forward.valid[:, : forward.prompt]
            pairs = [forward.pairs[layer] for layer in range(layers)]
            appended = forward.queries - forward.prompt
            self.trace.record(valid, [valid] * layers, appended, pairs=pairs)
        elif self.trace.valid is not None:
            self.trace.appended = forward.valid.shape[1] - self.trace.valid.shape[1]
