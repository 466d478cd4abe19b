"""Greedy generation: transformers' own prefill and first token, then the decode loop.

```python
start = prefill(model, inputs, TopP(p=0.975))          # or policy None for full attention
output = decode(start, max_new_tokens=256)             # the tokens of model.generate
```

Shape suffixes: B rows, L prompt columns, R rotary components.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from sf.attention import Trace, sparsify
from sf.attention.decoding.choice import Greedy, Rules
from sf.attention.decoding.loop import DecodeLoop, Prompts, Waiting
from sf.attention.decoding.step import supported
from sf.errors import ConfigError, UnsupportedModelError
from sf.selection import Policy

__all__ = [
    "Decoded",
    "Prefilled",
    "can_decode",
    "decode",
    "greedy",
    "position_after",
    "prefill",
    "rules_of",
]

# transformers' settings that change greedy decoding and that a step does not support.
_UNKNOWN = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
}
_UNKNOWN_LISTS = (
    *("bad_words_ids", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id"),
    *("exponential_decay_length_penalty", "begin_suppress_tokens", "watermarking_config"),
    *("stop_strings", "penalty_alpha", "min_length", "max_time"),
)


@dataclass
class Prefilled:
    """A prefilled prompt.

    Attributes:
        model: the model used.
        prompt: int64 (B, L). valid: bool (B, L), False on padding.
        token: int64 (B,), the first new token. position: int64 (R, B), its positions.
        cache: transformers' cache; `decode` empties it.
        rules: how further tokens are chosen.
        trace: what was kept; None for full attention.
        logits: float32 (B, V) of the first token, before any processor; None if `prefill` was
            not used.
    """

    model: Any
    prompt: Tensor
    valid: Tensor
    token: Tensor
    position: Tensor
    cache: Any
    rules: Rules
    trace: Trace | None
    logits: Tensor | None = None

    def loop(
        self,
        room: int,
        *,
        repeat: int = 1,
        graph: bool | None = None,
    ) -> DecodeLoop:
        """Move the cache into fixed buffers; can be done once.

        Args:
            room: tokens after the first, at most.
            repeat: rows of the loop per row of the prompt, all with the same contents: a larger
                batch than could be prefilled at once.
            graph: see `DecodeLoop`.
        """
        loop = DecodeLoop(self.model, len(self.token) * repeat, room, self.rules, graph=graph)
        loop.start(self.prompts(room + 1), repeat)
        return loop

    def prompts(self, limit: int) -> Prompts:
        """The input of a decode loop, for at most `limit` tokens; can be called once."""
        if self.cache is None:
            raise ConfigError("prefill", None, "its cache has been moved", "prefill again")
        cache, self.cache = self.cache, None
        size = self.model.config.get_text_config().vocab_size
        choice = Greedy(self.rules, size, self.token.device, self._read())
        limits = [limit] * len(self.token)
        return Prompts(cache, self.valid, self.token, None, self.position, choice, limits)

    def _read(self) -> Tensor:
        """The tokens so far for the repetition penalty, as transformers counts them."""
        prompt = self.prompt
        if not _penalty_counts_padding():
            vocabulary = self.model.config.get_text_config().vocab_size
            prompt = prompt.masked_fill(self.valid.long().cumsum(-1) == 0, vocabulary)
        return torch.cat([prompt, self.token[:, None]], dim=1)


@dataclass(frozen=True)
class Decoded:
    """The generated tokens.

    Attributes:
        sequences: int64 (B, L + made), the prompt and the new tokens, padded after a row's end.
        tokens: the new tokens of each row, including its end token.
        kv_bytes: of the loop's buffers, including free space.
        trace: the prefill's kept tokens; None for full attention.
    """

    sequences: Tensor
    tokens: list[list[int]]
    kv_bytes: int
    trace: Trace | None


def can_decode(model: Any) -> bool:
    """Whether the decode loop gives the same tokens as greedy `model.generate`."""
    try:
        supported(model)
        rules_of(model.generation_config, False, ())
    except (UnsupportedModelError, ConfigError):
        return False
    return True


@torch.inference_mode()
def prefill(
    model: Any,
    inputs: Mapping[str, Any],
    attention: Policy | AbstractContextManager[Trace | None] | None = None,
    *,
    forced: bool = False,
    suppress_tokens: tuple[int, ...] = (),
    tokens: Mapping[str, int | None] | None = None,
) -> Prefilled:
    """Read a prompt and choose the first token, through `model.generate`.

    Args:
        model: of the Qwen2 or Qwen2-VL line, on one device.
        inputs: from the processor: `input_ids`, `attention_mask` and media, if any.
        attention: attention of the prefill: a selector, a method's `apply(model)`, or None for
            full attention. Later tokens attend to the whole cache.
        forced: no end-of-sequence token is ever chosen (`min_new_tokens` of generate).
        suppress_tokens: never chosen.
        tokens: `eos_token_id` and `pad_token_id` instead of the model's.

    Raises:
        UnsupportedModelError: another model.
        ConfigError: its generation settings include something that a greedy step does not support.
    """
    decoder = supported(model)
    rules = rules_of(model.generation_config, forced, suppress_tokens, tokens)
    places: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        places.append(kwargs["position_ids"][..., -1:])

    context: Any = sparsify(model, attention) if isinstance(attention, Policy) else attention
    with nullcontext() if context is None else context as trace:
        hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            output = model.generate(
                **inputs,
                max_new_tokens=1,
                min_new_tokens=int(forced),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                return_dict_in_generate=True,
                output_logits=True,
                **({"suppress_tokens": list(suppress_tokens)} if suppress_tokens else {}),
                **(tokens or {}),
            )
        finally:
            hook.remove()
    prompt = output.sequences[:, :-1]
    mask = inputs.get("attention_mask")
    return Prefilled(
        model=model,
        prompt=prompt,
        valid=torch.ones_like(prompt, dtype=torch.bool) if mask is None else mask.bool(),
        token=output.sequences[:, -1],
        position=position_after(places[-1], len(prompt)),
        cache=output.past_key_values,
        rules=rules,
        trace=trace,
        logits=output.logits[0].float(),
    )


def decode(
    start: Prefilled,
    *,
    max_new_tokens: int,
    graph: bool | None = None,
) -> Decoded:
    """Generate greedily: the tokens that `model.generate` gives.

    Args:
        start: result of `prefill`; its cache is moved.
        max_new_tokens: number of tokens, including the first.
        graph: see `DecodeLoop`.
    """
    if max_new_tokens < 1:
        raise ConfigError("max_new_tokens", max_new_tokens, "must be at least 1")
    loop = DecodeLoop(
        start.model,
        len(start.token),
        max(1, max_new_tokens - 1),
        start.rules,
        graph=graph,
    )
    waiting = Waiting(len(start.token), lambda: start.prompts(max_new_tokens))
    tokens = loop.answer([waiting])[0].tokens
    width = max(map(len, tokens))
    padded = [row + [start.rules.pad] * (width - len(row)) for row in tokens]
    made = torch.tensor(padded, device=start.prompt.device)
    sequences = torch.cat([start.prompt, made], dim=1)
    return Decoded(sequences, tokens, loop.cache.nbytes, start.trace)


@torch.inference_mode()
def greedy(
    model: Any,
    inputs: Mapping[str, Any],
    context: AbstractContextManager[Trace | None],
    *,
    decodes_densely: bool,
    max_new_tokens: int,
    tokens: Mapping[str, int | None] | None = None,
) -> tuple[Tensor, Trace | None]:
    """The tokens of greedy `model.generate`, using the decode loop if it gives the same tokens.

    Args:
        model: a causal language model in evaluation mode.
        inputs: of the processor.
        context: what the model runs under, for instance a method's `apply(model)`.
        decodes_densely: in the context, later tokens attend to the whole cache by plain attention.
        max_new_tokens: length limit.
        tokens: as of `prefill`.

    Returns:
        int64 (B, L + made), the prompt and the new tokens, and the context's trace.
    """
    if decodes_densely and max_new_tokens > 1 and can_decode(model):
        start = prefill(model, inputs, context, tokens=tokens)
        return decode(start, max_new_tokens=max_new_tokens).sequences, start.trace
    with context as trace:
        sequences = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            **(tokens or {}),
        )
    return sequences, trace


@lru_cache
def _penalty_counts_padding() -> bool:
    """Whether transformers' repetition penalty counts padding as prompt tokens.

    5.17 does; a later release ignores everything before a row's first valid token.
    """
    try:
        RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=torch.zeros(1).long())
    except ValueError:
        return True
    return False


def position_after(last: Tensor, batch: int) -> Tensor:
    """Positions (R, B) of the token after the one at `last`, (B, 1) or (R, B, 1)."""
    last = last[None] if last.ndim == 2 else last
    return last[..., 0].expand(-1, batch) + 1


def rules_of(
    settings: Any,
    forced: bool,
    suppress: tuple[int, ...],
    tokens: Mapping[str, int | None] | None = None,
) -> Rules:
    """The greedy rules in a `GenerationConfig`; `tokens` as of `prefill`.

    Raises:
        ConfigError: it sets beams, n-gram blocking or another option that a step does not support.
    """
    for name, plain in _UNKNOWN.items():
        value = getattr(settings, name, None)
        if value not in (None, plain):
            raise ConfigError(name, value, "the decode loop is plain and greedy", "use generate")
    for name in _UNKNOWN_LISTS:
        value = getattr(settings, name, None)
        if value:
            raise ConfigError(name, value, "the decode loop is plain and greedy", "use generate")
    end = (tokens or {}).get("eos_token_id", settings.eos_token_id)
    end = tuple(end) if isinstance(end, (list, tuple)) else () if end is None else (end,)
    own = getattr(settings, "suppress_tokens", None)
    forbidden = tuple(suppress or own or ())
    pad = (tokens or {}).get("pad_token_id", settings.pad_token_id)
    if pad is None:
        pad = end[0] if end else 0
    return Rules(
        end=() if forced else end,
        pad=pad,
        forbidden=(*forbidden, *end) if forced else forbidden,
        repetition_penalty=settings.repetition_penalty or 1.0,
    )
