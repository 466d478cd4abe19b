"""The work of one side: a forced generation, then the decode loop from its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sf.attention import sparsify
from sf.attention.cache import PrunedLayer, prune_in_place
from sf.attention.decoding import DecodeLoop, Prefilled
from sf.attention.decoding.generate import position_after, rules_of
from sf.attention.layer import NAME as SPARSE_ATTENTION
from sf.profiling.roofline import Sizes
from sf.selection import Policy

__all__ = [
    "Position",
    "Side",
    "Workload",
    "context_of",
    "generate",
    "loop_after",
    "random_prefilled",
]

Side = Any
"""A selection policy, a method of `sf.baselines` (anything with `apply(model)`), or None for the
model as transformers runs it."""


@dataclass(frozen=True)
class Workload:
    """The work of one side.

    Attributes:
        model: in evaluation mode, on its device.
        inputs: of `generate`: `input_ids` int64 (batch, length), its mask, media.
        decode_tokens: forced tokens after the first.
    """

    model: Any
    inputs: Mapping[str, Any]
    decode_tokens: int

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.inputs["input_ids"].shape[0])

    @property
    def length(self) -> int:
        """Prompt tokens per row."""
        return int(self.inputs["input_ids"].shape[1])


class _Steps:
    """A stopping criterion that marks the time of every new token and never stops."""

    def __init__(self, each: Callable[[], None]) -> None:
        self.each = each

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.each()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def context_of(model: Any, side: Side) -> AbstractContextManager[Any]:
    """A context that runs the model under a side; yields its trace, or None for transformers."""
    if side is None:
        return nullcontext()
    if isinstance(side, Policy):
        return sparsify(model, side)
    context: AbstractContextManager[Any] = side.apply(model)
    return context


@torch.inference_mode()
def generate(work: Workload, each: Callable[[], None]) -> Any:
    """One forced generation, inside the side's context.

    Args:
        work: prompt and number of tokens.
        each: called at every new token.
    """
    from transformers import StoppingCriteriaList

    tokens = work.decode_tokens + 1
    return work.model.generate(
        **work.inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([_Steps(each)]),
    )


def loop_after(
    work: Workload, side: Side, output: Any, position: Tensor | None
) -> DecodeLoop | None:
    """The decode loop that continues from the end of `generate`; None if it does not apply.

    The loop does not implement methods with their own attention in decoding.
    """
    model = work.model
    pruned = model.get_decoder().config._attn_implementation == SPARSE_ATTENTION
    if position is None or not (pruned or side is None):
        return None
    prompt, token = output.sequences[:, :-1], output.sequences[:, -1]
    valid = torch.ones_like(prompt, dtype=torch.bool)
    valid[:, : work.length] = work.inputs["attention_mask"].bool()
    start = Prefilled(
        model=model,
        prompt=prompt,
        valid=valid,
        token=token,
        position=position_after(position, work.batch) + work.decode_tokens,
        cache=output.past_key_values,
        rules=rules_of(model.generation_config, True, ()),
        trace=None,
    )
    return start.loop(work.decode_tokens + 1)


@torch.inference_mode()
def random_prefilled(model: Any, batch: int, length: int, entries: Sequence[int]) -> Prefilled:
    """A prompt whose caches contain random keys and values.

    A decode loop over it does the same work, in the same time, as after a prefill; prefilling
    200,000 tokens would take half a minute.

    Args:
        model: of the Qwen2 or Qwen2-VL line, on its device.
        batch: rows.
        length: logical tokens of the prompt.
        entries: number of tokens that each layer keeps.
    """
    sizes, decoder = Sizes.of(model), model.get_decoder()
    like = next(decoder.layers.parameters())
    cache = prune_in_place(None, sizes.layers)
    for layer, kept in zip(cache.layers, entries, strict=True):
        shape = (batch, sizes.groups, kept, sizes.head)
        key, value = (torch.randn(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        assert isinstance(layer, PrunedLayer)
        layer.commit(key, value, length, 0, None)
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    components = 3 if "mrope_section" in rope else 1
    ids = torch.full((batch, 1), 1, dtype=torch.long, device=like.device).expand(-1, length)
    return Prefilled(
        model=model,
        prompt=ids,
        valid=torch.ones_like(ids, dtype=torch.bool),
        token=ids[:, 0].contiguous(),
        position=ids.new_full((components, batch), length),
        cache=cache,
        rules=rules_of(model.generation_config, True, ()),
        trace=None,
    )


class Position:
    """Records the position of the prompt's last token by a decoder hook for one forward pass."""

    def __init__(self, model: Any) -> None:
        self.last: Tensor | None = None
        self._hook = model.get_decoder().register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        position = kwargs.get("position_ids")
        self.last = None if position is None else position[..., -1:]
        self._hook.remove()

    def close(self) -> None:
        self._hook.remove()
