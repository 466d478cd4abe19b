"""Hooks on a model's decoder, which apply every attention method.

A method subclasses `DecoderHooks`: `before` prepares the arguments of the layers, `after`
records the result. `close` removes the hooks, also after an exception.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel

from sf.attention.model_view import ConfigView, Generate
from sf.attention.trace import Trace
from sf.errors import ConfigError, UnsupportedModelError

__all__ = ["Call", "DecoderHooks", "Watch", "find_decoder", "unwrapped"]

SomeTrace = TypeVar("SomeTrace", bound=Trace)
_active: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def unwrapped(model: Any) -> Any:
    """The transformers model within PEFT's wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def find_decoder(model: nn.Module) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model that generates and the decoder in it.

    Raises:
        UnsupportedModelError: not a transformers model whose decoder is layers of full attention.
    """
    name = type(model).__name__
    tuner = getattr(model, "active_peft_config", None)
    if tuner is not None and tuner.is_prompt_learning:
        raise UnsupportedModelError("model", name, "virtual prompt tokens are not supported")
    owner = unwrapped(model)
    if not isinstance(owner, PreTrainedModel):
        raise UnsupportedModelError(
            "model", name, "must be a transformers PreTrainedModel", "unwrap the model first"
        )
    if owner.config.is_encoder_decoder:
        raise UnsupportedModelError("model", name, "encoder-decoder models are not supported")
    decoder = owner.get_decoder()
    layers = getattr(decoder, "layers", None)
    if (
        not isinstance(decoder, PreTrainedModel)
        or not isinstance(layers, nn.ModuleList)
        or any(not hasattr(layer, "self_attn") for layer in layers)
    ):
        raise UnsupportedModelError(
            "model",
            name,
            "it has no decoder with self-attention layers",
            "use a decoder that follows transformers' attention interface",
        )
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UnsupportedModelError(
            "model", f"{name} ({', '.join(sorted(kinds))})", "every layer must be full attention"
        )
    return owner, decoder


@dataclass(frozen=True)
class Call:
    """One forward of the decoder.

    Attributes:
        batch, length: rows and new columns. past: columns in the cache before it.
        device: of the inputs.
        mask: the padding mask as bool (B, past + L), False on padding; None: no padding.
        cache: None without one.
    """

    batch: int
    length: int
    past: int
    device: torch.device
    mask: Tensor | None
    cache: Cache | None

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Self:
        """From the decoder's arguments, before its forward.

        Raises:
            ConfigError: no inputs, a static cache's mask, or another one that is not a padding mask
                over all columns.
        """
        inputs = kwargs.get("inputs_embeds")
        inputs = kwargs.get("input_ids") if inputs is None else inputs
        if inputs is None:
            raise ConfigError("input_ids", None, "the decoder received neither ids nor embeddings")
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        batch, length = inputs.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        if mask is None:
            return cls(batch, length, past, inputs.device, None, cache)
        if not isinstance(mask, Tensor) or mask.shape != (batch, past + length):
            if isinstance(cache, Cache) and cache.is_compileable:  # it made the mask
                rule = "its mask does not say which columns are padding"
                remedy = "use the default cache"
                raise ConfigError("past_key_values", type(cache).__name__, rule, remedy)
            raise ConfigError(
                "attention_mask",
                tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__,
                f"must be a 2D padding mask over {past + length} columns of {batch} rows",
                "pass the tokenizer's attention_mask and a dynamic cache",
            )
        return cls(batch, length, past, inputs.device, mask.bool(), cache)

    @property
    def valid(self) -> Tensor:
        """bool (B, past + L), False on padding."""
        if self.mask is not None:
            return self.mask
        shape = self.batch, self.past + self.length
        return torch.ones(shape, dtype=torch.bool, device=self.device)


class DecoderHooks(Generic[SomeTrace]):
    """Hooks on a model's decoder, from `open` to `close` or as a context.

    They apply to every thread that runs the model. Forward passes and generations of several
    threads are independent, but the trace describes the latest prompt.

    Args:
        model: a transformers model, also PEFT-wrapped or dispatched over devices.
        trace: filled by each prompt.
        prompt_width: columns of the prompt in a forward pass over prompt and completion. By default
            the prompt is that of `generate`, or all columns of a plain forward pass on an empty
            cache. May be changed between forward passes.

    Attributes:
        implementation: registered name of the attention function that the layers call; None: the
            model's own.
    """

    implementation: ClassVar[str | None] = None
    is_open = False

    def __init__(self, model: nn.Module, trace: SomeTrace, prompt_width: int | None = None) -> None:
        self.owner, self.decoder = find_decoder(model)
        self.trace, self.prompt_width = trace, prompt_width
        self.layers: list[Any] = list(self.decoder.get_submodule("layers").children())
        self._names = list(signature(self.decoder.forward).parameters)
        self._thread = threading.local()
        self._entered = False
        self._undo: list[Callable[[], Any]] = []

    # What a method says

    def before(self, call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments, with what its layers are handed."""
        return kwargs

    def after(self, kwargs: dict[str, Any], output: Any) -> None:
        """Record a forward that ended well."""

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse arguments of a forward, or of `generate` with its settings, before work."""

    # Open and close

    def open(self) -> SomeTrace:
        """Hook the decoder.

        Raises:
            ConfigError: a method is already applied to the model.
            UnsupportedModelError: the decoder does not use transformers' attention interface.
        """
        name = type(self.decoder).__name__
        if self.decoder in _active:
            rule = "it is already under another attention method"
            raise ConfigError("model", name, rule, "leave the other context, or undo its handle")
        if self.implementation and not self.decoder._can_set_attn_implementation():
            rule = "it does not use transformers' attention interface"
            remedy = "use a model whose attention calls ALL_ATTENTION_FUNCTIONS"
            raise UnsupportedModelError("model", name, rule, remedy)
        _active[self.decoder] = self
        self.is_open = True
        self._undo = [lambda: _active.pop(self.decoder, None)]
        if self.implementation:
            for module in (self.decoder, *(layer.self_attn for layer in self.layers)):
                self._view(module, self.implementation)
        self._hook(self.decoder.register_forward_pre_hook(self._before, with_kwargs=True))
        after = self.decoder.register_forward_hook(self._after, with_kwargs=True, always_call=True)
        self._hook(after)
        if self.owner is not self.decoder:
            self._hook(self.owner.register_forward_pre_hook(self._early, with_kwargs=True))
        if isinstance(self.owner, GenerationMixin) and self.prompt_width is None:
            vars(self.owner)["generate"] = Generate(self.owner, self._generate)
            self._undo.append(lambda: vars(self.owner).pop("generate", None))
        return self.trace

    def close(self) -> None:
        """Restore the model; idempotent."""
        self.is_open = False
        while self._undo:
            self._undo.pop()()

    undo = close

    def __enter__(self) -> SomeTrace:
        if self._entered:
            raise ConfigError("context", type(self).__name__, "it is entered already", "leave it")
        if not self.is_open:
            self.open()
        self._entered = True
        return self.trace

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy of the model has closed hooks, which do nothing."""
        return type(self).__new__, (type(self),)

    def _hook(self, hook: Any) -> None:
        self._undo.append(hook.remove)

    def _view(self, module: Any, implementation: str) -> None:
        config = module.config
        vars(module)["config"] = ConfigView(config, implementation)
        self._undo.append(lambda: vars(module).update(config=config))

    # The forward

    def _before(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.is_open or self.implementation is None:
            return None
        kwargs = {**kwargs, **dict(zip(self._names, args, strict=False))}
        if self.decoder.config._attn_implementation != self.implementation:
            rule = "it was changed while a method is applied to the model"
            given = self.decoder.config._attn_implementation
            raise ConfigError("attn_implementation", given, rule, "leave the context first")
        self.check(kwargs)
        return (), self.before(Call.of(kwargs), kwargs)

    def _early(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the vision tower runs."""
        if self.is_open:
            self.check(kwargs)

    def _after(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self.is_open and output is not None:  # None: the forward raised; let that error through
            self.after({**kwargs, **dict(zip(self._names, args, strict=False))}, output)

    def require_layers(self, count: int) -> None:
        """
        Raises:
            UnsupportedModelError: fewer layers than the decoder has called the attention function.
        """
        if count != len(self.layers):
            rule = f"{count} of {len(self.layers)} layers used the attention interface"
            raise UnsupportedModelError("model", type(self.decoder).__name__, rule)

    # Generation

    def prompt_columns(self, length: int) -> int:
        """Number of prompt columns among the `length` columns of a pass on an empty cache."""
        return self.prompt_width or getattr(self._thread, "prompt_width", None) or length

    def _generate(self, given: Mapping[str, Any], generate: Callable[[], Any]) -> Any:
        """`generate`, with the end of the prompt recorded.

        Assisted decoding sends prompt and candidates in one forward, and `use_cache=False` sends
        everything at every step: without the prompt's width their tokens would count as prompt.
        """
        if not self.is_open:
            return generate()
        settings = given.get("generation_config") or getattr(self.owner, "generation_config", None)
        self.check(_Settings(given, settings))
        prompts = [given.get(name) for name in ("inputs_embeds", "input_ids", "inputs")]
        width = next((prompt.shape[1] for prompt in prompts if prompt is not None), 1)
        before = getattr(self._thread, "prompt_width", None)
        self._thread.prompt_width = width
        try:
            return generate()
        finally:
            self._thread.prompt_width = before


class _Settings(dict[str, Any]):
    """Arguments of `generate`, and where they say nothing its generation settings."""

    def __init__(self, given: Mapping[str, Any], settings: Any) -> None:
        super().__init__(given)
        self.settings = settings

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else getattr(self.settings, name, default)


class Watch(DecoderHooks[SomeTrace]):
    """The model's own attention; the trace counts every prompt token in every layer.

    A prompt with a static cache, or with a mask that is not a 2D padding mask, runs, but its length
    is unknown and the trace is empty.
    """

    def after(self, kwargs: dict[str, Any], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if isinstance(cache, Cache) and cache.is_compileable:
            # Its length is a tensor: reading it would break torch.compile's graph of a step.
            self.trace.record(None, [], 0)
            return
        embeds: Any = kwargs.get("inputs_embeds")
        inputs: Any = kwargs.get("input_ids") if embeds is None else embeds
        batch, length = inputs.shape[:2]
        total = length if cache is None else int(cache.get_seq_length())
        mark_read(cache)
        if total > length:
            if self.trace.valid is not None:
                self.trace.appended = total - self.trace.valid.shape[1]
            return
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=inputs.device)
        if not isinstance(mask, Tensor) or mask.shape != (batch, length):
            self.trace.record(None, [], 0)
            return
        width = min(self.prompt_columns(length), length)
        valid = mask[:, :width].bool()
        self.trace.record(valid, [valid] * len(self.layers), length - width)


def mark_read(cache: Any) -> None:
    """Note in a cache's layers that they were filled under a method."""
    for layer in getattr(cache, "layers", ()):
        layer.read_under_method = True
