"""Hooks on a decoder: they make a plan for each forward and undo themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from sf.attention.cache import PrunedLayer, prune_in_place
from sf.attention.forward_state import ForwardState
from sf.attention.layer import NAME
from sf.attention.sparse_projections import install, uninstall
from sf.attention.trace import Trace
from sf.errors import ConfigError, UnsupportedModelError
from sf.selection import Policy

__all__ = ["DecoderHooks"]


class DecoderHooks:
    """Turns each forward of `decoder` into a sparse one until `close`.

    Attributes:
        prompt_width: columns of the prompt, the rest is completion; None: all columns are prompt.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        policy: Policy,
        prompt_width: int | None,
        trace: Trace,
        skip_dropped: bool,
    ) -> None:
        self.decoder, self.policy, self.prompt_width = decoder, policy, prompt_width
        self.trace = trace
        self._layers = list(decoder.get_submodule("layers").children())
        self._plan: ForwardState | None = None
        self._checkpoints: list[tuple[Any, Any]] = []
        self._own = str(decoder.config._attn_implementation)
        self._hooks: list[Any] = []
        self._lean: list[nn.Module] = []
        decoder.set_attn_implementation(NAME)
        if decoder.config._attn_implementation != NAME:
            raise UnsupportedModelError(
                "model",
                type(decoder).__name__,
                "it does not use transformers' attention interface",
                "use a model whose attention calls ALL_ATTENTION_FUNCTIONS",
            )
        attentions = [layer.get_submodule("self_attn") for layer in self._layers]
        self._lean = [module for module in attentions if skip_dropped and install(module)]
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def close(self) -> None:
        """Take everything back; harmless when repeated."""
        for hook in self._hooks:
            hook.remove()
        for module in self._lean:
            uninstall(module)
        self._hooks, self._lean = [], []
        self._release()
        if self.decoder.config._attn_implementation == NAME:
            self.decoder.set_attn_implementation(self._own)

    # The forward

    def _before(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._release()
        inputs = kwargs.get("inputs_embeds")
        inputs = kwargs.get("input_ids") if inputs is None else inputs
        if args or inputs is None:
            raise UnsupportedModelError(
                "model", type(decoder).__name__, "its decoder is not called with keyword arguments"
            )
        kwargs = dict(kwargs)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        batch, length = inputs.shape[:2]
        mask = _padding_mask(kwargs.get("attention_mask"), past + length)
        if past:
            assert cache is not None
            plan = self._continue(cache, mask, length)
        else:
            plan = self._start(kwargs, mask, batch, length, inputs.device)
        self._plan = kwargs["sparse_state"] = plan
        plan.open_cache(True)
        self._guard_checkpoints()
        return args, kwargs

    def _start(
        self,
        kwargs: dict[str, Any],
        mask: Tensor | None,
        batch: int,
        length: int,
        device: torch.device,
    ) -> ForwardState:
        width = length if self.prompt_width is None else self.prompt_width
        if width > length:
            raise ConfigError(
                "prompt_width", width, f"the input has {length} columns", "pass prompt + completion"
            )
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=device)
            tail_valid = None
        else:
            tail_valid = mask[:, width:]
            if length == width or bool(tail_valid.all()):
                tail_valid = None
        plan = ForwardState(
            kind="dense" if self.policy.dense else "prefill",
            policy=self.policy,
            dense=self._own,
            valid=mask[:, :width],
            tail_valid=tail_valid,
            tail=length - width,
            # A recompute may come after `close`, when the modules have their own forward back.
            lean=not (self.decoder.training and self._checkpointing()),
        )
        if plan.kind == "prefill" and self._uses_cache(kwargs):
            if self.policy.whole_kv and plan.tail:
                raise ConfigError(
                    "whole_kv",
                    True,
                    "a completion in the same forward would need two kinds of attention",
                    "use whole_kv=False, or generate step by step",
                )
            if not self.policy.whole_kv:
                if plan.tail_valid is not None:
                    raise ConfigError(
                        "attention_mask",
                        "padding after the prompt",
                        "a pruned cache cannot hold it",
                        "pass use_cache=False",
                    )
                found = kwargs.get("past_key_values")
                layers = int(self.decoder.config.num_hidden_layers)
                plan.cache = kwargs["past_key_values"] = prune_in_place(found, layers)
        return plan

    def _continue(self, cache: Cache, mask: Tensor | None, length: int) -> ForwardState:
        first = cache.layers[0]
        if not isinstance(first, PrunedLayer):
            return ForwardState(kind="dense", policy=self.policy, dense=self._own, tail=length)
        tail = None if mask is None else mask[:, first.prompt_width :]
        if tail is not None and bool(tail.all()):
            tail = None
        return ForwardState(
            kind="continue",
            policy=self.policy,
            dense=self._own,
            tail_valid=tail,
            tail=length,
            cache=cache,
        )

    def _uses_cache(self, kwargs: dict[str, Any]) -> bool:
        wanted = kwargs.get("use_cache")
        wanted = self.decoder.config.use_cache if wanted is None else wanted
        return bool(wanted) and not (self._checkpointing() and self.decoder.training)

    def _after(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        plan, cache = self._plan, kwargs.get("past_key_values")
        self._release()
        if output is None or plan is None:  # the forward raised: let that error through
            return
        layers = int(self.decoder.config.num_hidden_layers)
        if plan.seen != set(range(layers)):
            raise UnsupportedModelError(
                "model",
                type(decoder).__name__,
                f"{len(plan.seen)} of {layers} layers used the attention interface",
            )
        if plan.valid is None:
            if self.trace.valid is not None and cache is not None:
                self.trace.appended = cache.get_seq_length() - self.trace.valid.shape[1]
            return
        self.trace.valid, self.trace.appended = plan.valid, plan.tail
        self.trace.whole_kv = self.policy.whole_kv
        self.trace.kept = [plan.kept.get(layer, plan.valid) for layer in range(layers)]

    def _release(self) -> None:
        """End the forward: caches are sealed, checkpoint functions restored."""
        if self._plan is not None:
            self._plan.open_cache(False)
        self._plan = None
        for layer, function in self._checkpoints:
            vars(layer)["_gradient_checkpointing_func"] = function
        self._checkpoints = []

    # Gradient checkpointing

    def _checkpointing(self) -> bool:
        return any(getattr(layer, "gradient_checkpointing", False) for layer in self._layers)

    def _guard_checkpoints(self) -> None:
        """A layer recomputed in backward, perhaps after `close`, must find this implementation."""
        if not (self.decoder.training and self._checkpointing()):
            return
        for layer in self._layers:
            function = getattr(layer, "_gradient_checkpointing_func", None)
            if function is not None:
                self._checkpoints.append((layer, function))
                vars(layer)["_gradient_checkpointing_func"] = _guarded(
                    function, self.decoder.config
                )


def _guarded(checkpoint: Callable[..., Any], config: Any) -> Callable[..., Any]:
    """`checkpoint`, running its layer under sparse attention now and in the recompute."""

    @wraps(checkpoint)
    def run(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def sparse_layer(*inner: Any, **named: Any) -> Any:
            before = config._attn_implementation
            config._attn_implementation = NAME
            try:
                return layer(*inner, **named)
            finally:
                config._attn_implementation = before

        return checkpoint(sparse_layer, *args, **kwargs)

    return run


def _padding_mask(mask: Any, length: int) -> Tensor | None:
    """The 2D mask as bool (B, length), or None."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != length:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(
            "attention_mask",
            shape,
            f"sparse attention takes a 2D padding mask over {length} columns",
            "pass the tokenizer's attention_mask and a dynamic cache",
        )
    return mask.bool()
