"""`sparsify(model, policy)`: sparse attention as a context or a plain call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from sf.attention.decoder_hooks import DecoderHooks
from sf.attention.layer import register
from sf.attention.trace import Trace
from sf.errors import ConfigError, UnsupportedModelError
from sf.selection import Policy

__all__ = ["SparseHandle", "find_decoder", "sparsify"]

_active: WeakKeyDictionary[nn.Module, SparseHandle] = WeakKeyDictionary()


class SparseHandle:
    """A model under sparse attention. As a context it gives the trace and undoes itself.

    Attributes:
        trace: what the last prefill kept.
    """

    def __init__(
        self, model: nn.Module, policy: Policy, prompt_width: int | None, skip_dropped: bool
    ) -> None:
        self.trace = Trace()
        owner, decoder = find_decoder(model)
        if decoder in _active:
            raise ConfigError(
                "model",
                type(model).__name__,
                "it is already under sparse attention",
                "leave the other context, or undo its handle",
            )
        self._decoder, self._owner = decoder, owner
        register()
        self._session = DecoderHooks(decoder, policy, prompt_width, self.trace, skip_dropped)
        self._generates = isinstance(owner, GenerationMixin) and prompt_width is None
        if self._generates:
            # On the instance, not its class: other models are left alone.
            vars(owner)["generate"] = _watched(owner, self._session)
        _active[decoder] = self

    def undo(self) -> None:
        """Give the model back as it was; harmless when repeated."""
        if _active.get(self._decoder) is not self:
            return
        del _active[self._decoder]
        if self._generates:
            del vars(self._owner)["generate"]
        self._session.close()

    def __enter__(self) -> Trace:
        return self.trace

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def sparsify(
    model: nn.Module,
    policy: Policy,
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

    Prefill selects, in each layer, the prompt tokens that take part in attention; only their K and
    V stay in that layer's cache. Tokens that follow are all kept and see what is there. A later
    forward with several tokens over a pruned cache (a second user turn) is such a continuation: its
    tokens are not selected among.

    Training form: with `prompt_width`, a forward over prompt and completion selects on the first
    `prompt_width` columns (left-padded) and keeps all that follow, which gives the
    log-probabilities of sparse generation. Gradients flow through attention, not the choice.

    Args:
        model: a transformers model, also PEFT-wrapped or dispatched over devices.
        policy: the selector; see `sf.selection`.
        prompt_width: columns of the prompt in every forward. By default `generate` knows its
            prompt, and in a plain forward on an empty cache all columns are prompt.
        skip_dropped: in Qwen2, Qwen2-VL and Qwen2.5-VL decoders, long prompts do not project the
            queries and outputs of dropped tokens; the result is the same up to rounding.

    Returns:
        A handle that is active at once: a context manager, with `trace` and `undo()`.

    Raises:
        UnsupportedModelError: the decoder does not use transformers' attention interface, or has
            layers that are not causal full attention.
        ConfigError: the model is already under sparse attention.
    """
    if not isinstance(policy, Policy):
        raise ConfigError("policy", policy, "a Policy is needed", "for example TopP(p=0.975)")
    if prompt_width is not None and prompt_width < 1:
        raise ConfigError("prompt_width", prompt_width, "the prompt has at least one column")
    return SparseHandle(model, policy, prompt_width, skip_dropped)


def find_decoder(model: nn.Module) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model that generates and the decoder in it."""
    name = type(model).__name__
    tuner = getattr(model, "active_peft_config", None)
    if tuner is not None and tuner.is_prompt_learning:
        raise UnsupportedModelError("model", name, "virtual prompt tokens are not supported")
    unwrap = getattr(model, "get_base_model", None)
    owner = unwrap() if callable(unwrap) else model
    if not isinstance(owner, PreTrainedModel):
        raise UnsupportedModelError(
            "model", name, "a transformers PreTrainedModel is needed", "unwrap the model first"
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
            "no decoder with layers of self-attention was found in it",
            "use a decoder that follows transformers' attention interface",
        )
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UnsupportedModelError(
            "model", f"{name} ({', '.join(sorted(kinds))})", "every layer must be full attention"
        )
    return owner, decoder


def _watched(owner: Any, session: DecoderHooks) -> Callable[..., Any]:
    """`generate` that tells the session where the prompt ends.

    Assisted decoding sends prompt and candidates in one forward, and `use_cache=False` sends
    everything at every step: without the prompt's width their tokens would be selected among.
    """
    generate = owner.generate

    @wraps(generate)
    def run(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or owner.generation_config
        chunk = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        if chunk is not None and not session.policy.dense:
            raise ConfigError(
                "prefill_chunk_size",
                chunk,
                "selection needs the queries at the end of the prompt before its first layer's "
                "attention",
                "prefill in one piece",
            )
        given = [kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")]
        prompt = next((value for value in [*args[:1], *given] if value is not None), None)
        if prompt is None:
            return generate(*args, **kwargs)
        session.prompt_width = prompt.shape[1]
        try:
            return generate(*args, **kwargs)
        finally:
            session.prompt_width = None

    return run
