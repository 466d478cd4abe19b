"""One token of a decoder as a fixed sequence of device operations.

A step does not depend on values: shapes, addresses and the order of operations are the same in
every step. It therefore never synchronises with the device, and can be recorded once and replayed.

Shape suffixes: S rows of the loop, A rows in use (the first ones), B rows of a prefill, V
vocabulary, E end tokens, R rotary components (1 for plain RoPE, 4 in the Qwen2-VL line: text, time,
height, width), N most tokens after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from sf.attention.backends import backend_for
from sf.attention.decoder_hooks import unwrapped
from sf.attention.decoding.buffers import DecodeCache
from sf.attention.decoding.choice import Choice, Rules
from sf.attention.decoding.fused import LAYERS, FusedLayers
from sf.errors import UnsupportedModelError

__all__ = ["Step", "supported"]

NAME = "sparsity_forcing_decode"


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
    """Attention of one new token over a whole buffer, with the backend of sparse decoding.

    Args:
        query: (B, H, 1, D). key, value: (B, G, C, D).
        attention_mask: bool (B, 1, 1, C).

    Returns:
        (B, 1, H, D), None.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return backend_for(query.device).decode(query, key, value, attention_mask, scaling), None


def supported(model: Any) -> Any:
    """The decoder of a model that a step supports.

    Raises:
        UnsupportedModelError: another family, RoPE that depends on the length, or layers on
            several devices.
    """
    name = type(model).__name__
    decoder = unwrapped(model).get_decoder()
    layers = getattr(decoder, "layers", ())
    if not layers or not all(isinstance(layer, LAYERS) for layer in layers):
        raise UnsupportedModelError(
            "model", name, "the decode loop supports Qwen2 and Qwen2-VL layers", "use generate"
        )
    kind = (getattr(decoder.config, "rope_parameters", None) or {}).get("rope_type", "default")
    if "dynamic" in kind or kind == "longrope":
        raise UnsupportedModelError("model", name, f"rope {kind!r} reads positions on the host")
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        raise UnsupportedModelError(
            "model", name, f"a recorded step runs on one device, not {sorted(devices)}"
        )
    return decoder


class Step:
    """Reads the newest token of every row in use, appends the next one.

    Args:
        model: a causal language model that `supported` accepts.
        cache: for its keys and values.
        choice: of tokens, for as many rows as the cache has slots.
        rules: end tokens and padding.

    Attributes:
        written: int64 (S, N + 2), each row's answer from its first token on, followed by `pad`.
            logps: float32 (S, N + 2), of the tokens; None for a choice without.
        made: int64 (S,), tokens of the answers, including the end token.
        finished: bool (S, 1), whether the row has ended or reached its limit.
        end: int64 (E,), the end-of-sequence tokens.
    """

    def __init__(self, model: Any, cache: DecodeCache, choice: Choice, rules: Rules) -> None:
        AttentionInterface.register(NAME, cached_attention)
        self.decoder, self.head = supported(model), unwrapped(model).get_output_embeddings()
        self._attentions = [layer.self_attn for layer in self.decoder.layers]
        self.cache, self.choice, self.rules = cache, choice, rules
        device, slots = self.head.weight.device, cache.slots
        self.end = torch.tensor(rules.end, dtype=torch.long, device=device)
        self.token = torch.zeros(slots, 1, dtype=torch.long, device=device)
        self.position = self.token.new_zeros(0)
        self.finished = torch.ones_like(self.token, dtype=torch.bool)
        self.made = self.token.new_zeros(slots)
        self._limit = self.token.new_zeros(slots)
        self.written = self.token.new_full((slots, cache.room + 2), rules.pad)
        self.logps = torch.zeros(self.written.shape, device=device) if choice.scored else None
        self.active = slots
        self._start: Any = None
        self._fused = FusedLayers.of(self.decoder, self.head)

    def put(
        self,
        slots: Sequence[int],
        token_B: Tensor,
        logp_B: Tensor | None,
        position_RB: Tensor,
        limits: Sequence[int],
        rows: Sequence[int],
    ) -> None:
        """Start answers in slots.

        Args:
            slots: target slot of each of `rows`.
            token_B: int64, the first token. logp_B: its log-probability.
            position_RB: int64, position of the first token.
            limits: token limit of each of `rows`, including the first token.
        """
        if not self.position.numel():
            self.position = position_RB.new_zeros(len(position_RB), self.cache.slots, 1)
        to, of = list(slots), list(rows)
        self.token[to] = token_B[of, None]
        self.position[:, to] = position_RB[:, of, None]
        self._limit[to] = torch.tensor(list(limits), device=self._limit.device)
        self.made[to] = 1
        self.written[to] = self.rules.pad
        self.written[to, 0] = token_B[of]
        if self.logps is not None and logp_B is not None:
            self.logps[to, 0] = logp_B[of].float()
        ended = torch.isin(token_B[of], self.end) | (self._limit[to] <= 1)
        self.finished[to] = ended[:, None]

    @property
    def _changing(self) -> list[Tensor]:
        """The tensors that change with new tokens, rows first."""
        scores = [] if self.logps is None else [self.logps]
        return [self.token, self.finished, self.made, self.written, *scores]

    def move(self, to: int, source: int) -> None:
        """Copy a row, with its keys, values and randomness, to another slot."""
        self.cache.move(to, source)
        self.choice.put([to], self.choice, [source])
        for part in (*self._changing, self._limit):
            part[to] = part[source]
        self.position[:, to] = self.position[:, source]

    def narrow(self, active: int, *, trim: bool = False) -> None:
        """Use only the first `active` rows (`DecodeCache.narrow`)."""
        self.active = active
        self.cache.narrow(active, trim=trim)

    def keep_start(self) -> None:
        """Make the current state the one that `restart` returns to."""
        self._start = self.state()

    @torch.inference_mode()
    def state(self) -> Any:
        """A copy of the state that changes with new tokens."""
        copies = [part.clone() for part in (*self._changing, self.position)]
        return copies, self.cache.written(), self.choice.written()

    @torch.inference_mode()
    def restart(self, to: Any = None) -> None:
        """Return to a state, by default the stored start."""
        copies, cache, choice = self._start if to is None else to
        for part, copy in zip((*self._changing, self.position), copies, strict=True):
            part.copy_(copy)
        self.cache.rewind(cache)
        self.choice.rewind(choice)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Generate one token for every row in use, after `choice.draw`."""
        views = [(vars(module), module.config) for module in self._attentions]
        config = getattr(self.decoder.config, "viewed", self.decoder.config)
        before = config._attn_implementation
        config._attn_implementation = NAME
        for held, _ in views:
            held["config"] = config
        try:
            self._choose(self._logits())
        finally:
            for held, view in views:
                held["config"] = view
            config._attn_implementation = before

    def _logits(self) -> Tensor:
        """float32 (A, V)."""
        cache, active = self.cache, self.active
        cache.open_entry()
        hidden = self.decoder.embed_tokens(self.token[:active])
        # Of four components, the first is the text position; RoPE uses the other three.
        position = self.position[:, :active]
        position = position[-3:] if len(position) > 1 else position[0]
        rotary = self.decoder.rotary_emb(hidden, position)
        if self._fused is not None and self._fused.usable:
            return self._fused.logits(hidden[:, 0], rotary, cache).float()
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

    def _choose(self, logits_AV: Tensor) -> None:
        active = self.active
        finished, made = self.finished[:active], self.made[:active]
        chosen, logp = self.choice(logits_AV)
        chosen = chosen.masked_fill(finished, self.rules.pad)
        self.written[:active].scatter_(1, made[:, None], chosen)
        if self.logps is not None and logp is not None:
            self.logps[:active].scatter_(1, made[:, None], logp)
        going = ~finished[:, 0]
        made.add_(going)
        self.cache.close_entry(going)
        finished.logical_or_((chosen == self.end).any(-1, keepdim=True))
        finished.logical_or_((made >= self._limit[:active])[:, None])
        self.token[:active].copy_(chosen)
        self.position[:, :active].add_(1)
