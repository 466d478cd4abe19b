"""`sparsify(model, policy)`: sparse attention as a context manager or a plain call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

from torch import nn
from transformers import Cache

from sf.attention.budget import Budget
from sf.attention.cache import PrunedLayer, prune_in_place
from sf.attention.decoder_hooks import Call, DecoderHooks, Watch, mark_read
from sf.attention.forward_state import ForwardState
from sf.attention.layer import NAME, register
from sf.attention.model_view import ConfigView
from sf.attention.sparse_projections import install, uninstall
from sf.attention.trace import Trace
from sf.errors import ConfigError
from sf.selection import Policy

__all__ = ["SparseHandle", "sparsify"]

SparseHandle = DecoderHooks[Trace]
"""The result of `sparsify`: active immediately, a context with a trace, and `undo()`."""
_DYNAMIC = (None, "dynamic", "dynamic_full")
_GROWING = (*_DYNAMIC, "offloaded", "quantized")
_FIXED_CACHE = (
    "a selection leaves another number of entries in each layer",
    "use the default cache, or p = 1",
)
_REFUSED: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "prefill_chunk_size": (
        (None,),
        "selection needs the queries at the end of the prompt before its first layer's attention",
        "prefill in one piece",
    ),
    "guidance_scale": (
        (None, 1, 1.0),
        "guidance runs the model on another prompt than the one that is selected on",
        "leave it out",
    ),
    "assistant_early_exit": (
        (None,),
        "a pruned cache has an entry for every layer, and an early exit skips some",
        "use an assistant_model",
    ),
}
"""Arguments of `generate`: values without effect, the reason to refuse others, the remedy."""


def sparsify(
    model: nn.Module,
    policy: Policy | Budget,
    *,
    prompt_width: int | None = None,
    skip_dropped: bool = True,
) -> SparseHandle:
    """Run `model`'s decoder with token-sparse attention (arXiv 2504.18579, steps 1-7 of ZipVL).

    ```python
    with sparsify(model, TopP(p=0.975)) as trace:
        output = model.generate(**inputs, max_new_tokens=64)

    handle = sparsify(model, TopP(p=0.975))   # active from here
    handle.undo()
    ```

    In each layer, prefill selects the prompt tokens that take part in attention; only their K and
    V stay in that layer's cache. All later tokens are kept and attend to this cache. A later
    forward pass with several tokens over a pruned cache (a second user turn) selects nothing: it
    keeps all its tokens.

    For training, set `prompt_width`: a forward pass over prompt and completion then selects among
    the first `prompt_width` columns (left-padded) and keeps all later ones, which gives the
    log-probabilities of sparse generation. Gradients flow through attention, not the selection.

    A policy that keeps everything (p = 1) runs the model's own attention and only records the
    trace; all of the model's caches and outputs then work.

    Args:
        model: a transformers model, also PEFT-wrapped or dispatched over devices.
        policy: the selector; see `sf.selection`. A `Budget` uses the checkpoint's p for a share of
            the tokens.
        prompt_width: columns of the prompt in every forward pass. By default the prompt is that of
            `generate`, or all columns of a plain forward pass on an empty cache.
        skip_dropped: in Qwen2, Qwen2-VL and Qwen2.5-VL decoders, long prompts do not project the
            queries and outputs of dropped tokens; the result is the same up to rounding. False:
            every layer calls the sparse attention function, even if the policy keeps everything.

    Returns:
        An active handle: a context manager with `trace` and `undo()`.

    Raises:
        UnsupportedModelError: the decoder does not use transformers' attention interface, or has
            layers that are not causal full attention.
        ConfigError: another attention method is active on the model. Calls of the model raise it
            for what a pruned cache or a selection does not support (static caches, guidance, early
            exit, attention weights, a cache filled outside the context).
    """
    if isinstance(policy, Budget):
        policy = policy.policy(model)
    if not isinstance(policy, Policy):
        raise ConfigError("policy", policy, "must be a Policy", "for example TopP(p=0.975)")
    if prompt_width is not None and prompt_width < 1:
        raise ConfigError("prompt_width", prompt_width, "must be at least 1")
    handle: SparseHandle
    if policy.dense and skip_dropped:
        handle = Watch(model, Trace(), prompt_width)
    else:
        handle = SparseHooks(model, policy, prompt_width, skip_dropped)
    handle.open()
    return handle


class SparseHooks(DecoderHooks[Trace]):
    """Makes each forward pass of the decoder sparse."""

    implementation = NAME

    def __init__(
        self, model: nn.Module, policy: Policy, prompt_width: int | None, skip_dropped: bool
    ) -> None:
        super().__init__(model, Trace(), prompt_width)
        self.policy, self._skips = policy, skip_dropped

    def open(self) -> Trace:
        register()
        super().open()
        for module in [layer.self_attn for layer in self.layers]:
            if self._skips and install(module):
                self._undo.append(partial(uninstall, module))
        return self.trace

    def close(self) -> None:
        state = getattr(self._thread, "state", None) if self.is_open else None
        if state is not None:  # a forward was interrupted
            state.open_cache(False)
        super().close()

    undo = close

    def check(self, given: Mapping[str, Any]) -> None:
        if self.policy.dense:
            return
        asked = given.get("output_attentions")
        if self.decoder.config.output_attentions if asked is None else asked:
            rule = "sparse attention forms no attention weights"
            remedy = "leave it out (the trace says what was kept), or use p = 1"
            raise ConfigError("output_attentions", True, rule, remedy)
        for name, (harmless, rule, remedy) in _REFUSED.items():
            if given.get(name) not in harmless:
                raise ConfigError(name, given.get(name), rule, remedy)
        kind = given.get("cache_implementation")
        if kind not in (_GROWING if self.policy.whole_kv else _DYNAMIC):
            raise ConfigError("cache_implementation", kind, *_FIXED_CACHE)
        self._check_cache(given.get("past_key_values"))

    def _check_cache(self, cache: Any) -> None:
        if not isinstance(cache, Cache):
            return
        if cache.is_compileable:
            raise ConfigError("past_key_values", type(cache).__name__, *_FIXED_CACHE)
        layers = cache.layers
        if cache.get_seq_length() and not hasattr(layers[0], "read_under_method"):
            rule = "it was filled outside the context: which of its tokens to keep is not known"
            remedy = "read the whole prompt inside the context, or use p = 1"
            raise ConfigError("past_key_values", type(cache).__name__, rule, remedy)

    def before(self, call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._interrupted()
        state = self._continue(call) if call.past else self._start(call, kwargs)
        self._thread.state = state
        state.open_cache(True)
        self._guard_checkpoints()
        cache = kwargs.get("past_key_values") if state.cache is None else state.cache
        return {**kwargs, "past_key_values": cache, "sparse_state": state}

    def _start(self, call: Call, kwargs: dict[str, Any]) -> ForwardState:
        width = self.prompt_columns(call.length)
        if width > call.length:
            rule = f"the input has {call.length} columns"
            raise ConfigError("prompt_width", width, rule, "pass prompt + completion")
        tail_valid = None if call.mask is None else call.mask[:, width:]
        if tail_valid is not None and (call.length == width or bool(tail_valid.all())):
            tail_valid = None
        state = ForwardState(
            kind="dense" if self.policy.dense else "prefill",
            policy=self.policy,
            valid=call.valid[:, :width],
            tail_valid=tail_valid,
            tail=call.length - width,
            # A recompute may come after `close`, when the modules have their own forward back.
            lean=not self._recomputes(),
        )
        if state.kind == "prefill" and self._uses_cache(kwargs):
            if self.policy.whole_kv and state.tail:
                raise ConfigError(
                    "whole_kv",
                    True,
                    "a completion in the same forward would need two kinds of attention",
                    "use whole_kv=False, or generate step by step",
                )
            if not self.policy.whole_kv:
                if state.tail_valid is not None:
                    raise ConfigError(
                        "attention_mask",
                        "padding after the prompt",
                        "a pruned cache cannot hold it",
                        "pass use_cache=False",
                    )
                state.cache = prune_in_place(call.cache, len(self.layers))
        return state

    def _continue(self, call: Call) -> ForwardState:
        assert call.cache is not None
        first = call.cache.layers[0]
        if not isinstance(first, PrunedLayer):
            return ForwardState(kind="dense", policy=self.policy, tail=call.length)
        tail = None if call.mask is None else call.mask[:, first.prompt_width :]
        if tail is not None and bool(tail.all()):
            tail = None
        return ForwardState(
            kind="continue",
            policy=self.policy,
            tail_valid=tail,
            tail=call.length,
            cache=call.cache,
        )

    def _uses_cache(self, kwargs: dict[str, Any]) -> bool:
        wanted = kwargs.get("use_cache")
        wanted = self.decoder.config.use_cache if wanted is None else wanted
        return bool(wanted) and not self._recomputes()

    def _after(self, decoder: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self._interrupted()
        super()._after(decoder, args, kwargs, output)

    def after(self, kwargs: dict[str, Any], output: Any) -> None:
        state: ForwardState = kwargs["sparse_state"]
        self.require_layers(len(state.seen))
        cache = getattr(output, "past_key_values", None)
        mark_read(cache)
        if state.valid is None:
            if self.trace.valid is not None and cache is not None:
                self.trace.appended = cache.get_seq_length() - self.trace.valid.shape[1]
            return
        kept = [state.kept.get(layer, state.valid) for layer in range(len(self.layers))]
        self.trace.record(state.valid, kept, state.tail, self.policy.whole_kv)

    def _interrupted(self) -> None:
        """Seal the cache of this thread's last forward, however it ended."""
        state = getattr(self._thread, "state", None) if self.is_open else None
        if state is not None:
            state.open_cache(False)
            self._thread.state = None

    # Gradient checkpointing

    def _recomputes(self) -> bool:
        checkpointed = any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers)
        return self.decoder.training and checkpointed

    def _guard_checkpoints(self) -> None:
        """A layer recomputed in backward, perhaps after `close`, must find this implementation."""
        for layer in self.layers if self._recomputes() else []:
            function = getattr(layer, "_gradient_checkpointing_func", None)
            if function is not None and not hasattr(function, "guarded"):
                guarded = _guarded(function, layer.self_attn)
                vars(layer)["_gradient_checkpointing_func"] = guarded
                self._undo.append(
                    partial(vars(layer).__setitem__, "_gradient_checkpointing_func", function)
                )


def _guarded(checkpoint: Callable[..., Any], module: Any) -> Callable[..., Any]:
    """`checkpoint`, running its layer under sparse attention now and in the recompute."""

    @wraps(checkpoint)
    def run(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def sparse_layer(*inner: Any, **named: Any) -> Any:
            before = module.config
            if not hasattr(before, "viewed"):
                vars(module)["config"] = ConfigView(before, NAME)
            try:
                return layer(*inner, **named)
            finally:
                vars(module)["config"] = before

        return checkpoint(sparse_layer, *args, **kwargs)

    vars(run)["guarded"] = True
    return run
