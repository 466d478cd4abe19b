"""One greedy token of a decoder as a fixed sequence of device operations.

Nothing in a step depends on a value: shapes, addresses and the order of operations are those of the
step before. It therefore never waits for the device, and can be recorded once and replayed.

Shape suffixes: B rows, V vocabulary, E end tokens, R rotary components (1 for plain rope, 4 in the
Qwen2-VL line: text, time, height, width), N tokens at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, library, nn
from transformers import AttentionInterface
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

from sf.attention.backends import backend_for
from sf.attention.decoding.buffers import DecodeCache
from sf.errors import ConfigError, UnsupportedModelError

__all__ = ["Rules", "Step", "supported"]

NAME = "sparsity_forcing_decode"
_LAYERS = (Qwen2DecoderLayer, Qwen2VLDecoderLayer, Qwen2_5_VLDecoderLayer)


@dataclass(frozen=True)
class Rules:
    """How the next token is chosen from the logits; the part of `GenerationConfig` that is greedy.

    Attributes:
        end: end-of-sequence tokens; a row that made one gets `pad` from then on.
        pad: token after the end.
        forbidden: tokens that are never chosen.
        repetition_penalty: as in transformers, over prompt and reply; 1 is none.
    """

    end: tuple[int, ...] = ()
    pad: int = 0
    forbidden: tuple[int, ...] = ()
    repetition_penalty: float = 1.0


@library.custom_op("sparsity_forcing::decode_attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """One operator to torch.compile, whatever the backend launches."""
    return backend_for(query.device).decode(query, key, value, mask, scaling).contiguous()


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return query.new_empty(query.shape[0], 1, query.shape[1], value.shape[-1])


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token over a whole buffer, with the backend that sparse decoding uses.

    Args:
        query: (B, H, 1, D). key, value: (B, G, W + N, D).
        attention_mask: bool (B, 1, 1, W + N).

    Returns:
        (B, 1, H, D), None.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(query, key, value, attention_mask, scaling), None


def supported(model: Any) -> Any:
    """The decoder of a model whose layers a step can call.

    Raises:
        UnsupportedModelError: another family, rope that depends on the length, or layers on
            several devices.
    """
    name = type(model).__name__
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", ())
    if not layers or any(type(layer) not in _LAYERS for layer in layers):
        raise UnsupportedModelError(
            "model", name, "the decode loop knows Qwen2's and Qwen2-VL's layers", "use generate"
        )
    kind = (getattr(decoder.config, "rope_parameters", None) or {}).get("rope_type", "default")
    if "dynamic" in kind or kind == "longrope":
        raise UnsupportedModelError("model", name, f"rope {kind!r} reads positions on the host")
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        raise UnsupportedModelError(
            "model", name, f"a recorded step lives on one device, not {sorted(devices)}"
        )
    return decoder


class Step:
    """Reads the newest token, appends the next one.

    Args:
        model: a causal language model that `supported` accepts.
        cache: after the prefill.
        token_B: int64 (B,), the first new token. position_RB: int64 (R, B), where it stands.
        rules: how to choose.
        prompt_BL: int64 (B, L), read for the repetition penalty only; V stands for padding.
        compiled: let torch.compile fuse the small kernels (minutes for a large model; rounding
            changes, so near ties may be decided differently).

    Attributes:
        first_token: int64 (B, 1). end: int64 (E,), the end-of-sequence tokens.
        written: int64 (B, N), the tokens after the first, in order; not yet made ones are `pad`.
        finished: bool (B, 1).

    Rows of the tensors are repeated as the cache's are.
    """

    def __init__(
        self,
        model: Any,
        cache: DecodeCache,
        token_B: Tensor,
        position_RB: Tensor,
        rules: Rules,
        prompt_BL: Tensor | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        AttentionInterface.register(NAME, cached_attention)
        self.decoder, self.head = supported(model), model.get_output_embeddings()
        self._attentions = [layer.self_attn for layer in self.decoder.layers]
        self.cache, self.rules = cache, rules
        device, times = token_B.device, cache.repeat
        self.first_token = token_B.repeat_interleave(times)[:, None].clone()
        self._first_position = position_RB.repeat_interleave(times, dim=1)[..., None].clone()
        vocabulary = model.config.get_text_config().vocab_size
        self.end = torch.tensor(rules.end, dtype=torch.long, device=device)
        self._forbidden = _marks(rules.forbidden, vocabulary, device)
        self._first_seen = None
        if rules.repetition_penalty != 1.0:
            if prompt_BL is None:
                raise ConfigError("prompt", None, "a repetition penalty reads the prompt's tokens")
            seen = torch.zeros(len(token_B), vocabulary + 1, dtype=torch.bool, device=device)
            seen.scatter_(1, torch.cat([prompt_BL, token_B[:, None]], dim=1), True)
            self._first_seen = seen[:, :vocabulary].repeat_interleave(times, dim=0)
        self.token = torch.empty_like(self.first_token)
        self.position = torch.empty_like(self._first_position)
        self.finished = torch.empty_like(self.first_token, dtype=torch.bool)
        self.seen = None if self._first_seen is None else torch.empty_like(self._first_seen)
        self.written = self.token.new_empty(len(self.token), cache.room)
        self._token: Callable[[], None] = self._make_token
        if compiled:
            self._token = torch.compile(self._make_token, fullgraph=True, dynamic=False)
        self.restart()

    @torch.inference_mode()
    def restart(self) -> None:
        """Go back to the state after the prefill."""
        self.cache.rewind()
        self.token.copy_(self.first_token)
        self.position.copy_(self._first_position)
        self.finished.copy_((self.token == self.end).any(-1, keepdim=True))
        self.written.fill_(self.rules.pad)
        if self.seen is not None and self._first_seen is not None:
            self.seen.copy_(self._first_seen)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Make one token for every row."""
        views = [(vars(module), module.config) for module in self._attentions]
        config = getattr(self.decoder.config, "viewed", self.decoder.config)
        before = config._attn_implementation
        config._attn_implementation = NAME
        for held, _ in views:
            held["config"] = config
        try:
            self._token()
        finally:
            for held, view in views:
                held["config"] = view
            config._attn_implementation = before

    def _make_token(self) -> None:
        self._choose(self._logits())

    def _logits(self) -> Tensor:
        """float32 (B, V)."""
        cache = self.cache
        cache.open_entry()
        hidden = self.decoder.embed_tokens(self.token)
        # Text position first, where there are four; rope uses the other three.
        position = self.position[-3:] if len(self.position) > 1 else self.position[0]
        rotary = self.decoder.rotary_emb(hidden, position)
        for layer, mask in zip(self.decoder.layers, cache.masks, strict=True):
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = self.head(self.decoder.norm(hidden))[:, -1].float()
        return logits

    def _choose(self, logits_BV: Tensor) -> None:
        """Greedy, with transformers' processors in their order."""
        penalty = self.rules.repetition_penalty
        if self.seen is not None:
            harder = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
            logits_BV = torch.where(self.seen, harder, logits_BV)
        if self._forbidden is not None:
            logits_BV = logits_BV.masked_fill(self._forbidden, float("-inf"))
        chosen = logits_BV.argmax(-1, keepdim=True)
        chosen = chosen.masked_fill(self.finished, self.rules.pad)
        self.written.index_copy_(1, self.cache.at, chosen)
        self.finished.logical_or_((chosen == self.end).any(-1, keepdim=True))
        if self.seen is not None:
            self.seen.scatter_(1, chosen, True)
        self.token.copy_(chosen)
        self.position.add_(1)
        self.cache.close_entry()


def _marks(tokens: tuple[int, ...], vocabulary: int, device: torch.device) -> Tensor | None:
    """bool (V,), True at the tokens."""
    if not tokens:
        return None
    marks = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    marks[list(tokens)] = True
    return marks
