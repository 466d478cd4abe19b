"""Greedy decoding of a prompt that goes on after a part of it was read and cached.

Replies are without the penalties that a checkpoint's generation settings may hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sf.attention import sparsify
from sf.errors import UnsupportedModelError

if TYPE_CHECKING:
    from sf.selection import Policy

__all__ = ["More", "cut", "greedy", "more_of", "positions_of"]


@dataclass(frozen=True)
class More:
    """What follows a prompt: `ids` and `valid`, long [B, M], padded on the left."""

    ids: Tensor
    valid: Tensor


def more_of(
    processor: Any, talks: Sequence[list[dict[str, Any]]], replies: Sequence[str], device: str
) -> More:
    """What a first turn's cache is continued with: its reply, and the second question.

    Args:
        processor: of the model.
        talks: conversations of three turns: user, assistant, user.
        replies: the assistant's texts, which follow the first prompt as generation leaves them.
        device: where the tensors go.

    Raises:
        UnsupportedModelError: the chat template rewrites an earlier turn.
    """
    texts = []
    for talk, reply in zip(talks, replies, strict=True):
        first = processor.apply_chat_template(talk[:1], tokenize=False)
        whole = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        _, found, rest = whole.removeprefix(first).partition(reply)
        if not whole.startswith(first) or not found:
            raise UnsupportedModelError(
                "chat template",
                type(processor).__name__,
                "it changes the first turns when a further one follows, so no cache can be kept",
                "leave out the two-turn check: two_turn_pairs 0",
            )
        texts.append(reply + rest)
    found = processor.tokenizer(
        texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    )
    return More(found["input_ids"].to(device), found["attention_mask"].to(device))


def positions_of(model: Any, inputs: Any, ids_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """Rope positions of prompt and continuation: [3, B, L] for the Qwen families, else [B, L]."""
    inner = model.model
    if not hasattr(inner, "get_rope_index"):
        return (valid_BL.cumsum(-1) - 1).clamp(min=0)
    types = inputs["mm_token_type_ids"]
    text = types.new_zeros(len(types), ids_BL.shape[1] - types.shape[1])
    grids = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    positions: Tensor = inner.get_rope_index(
        ids_BL,
        mm_token_type_ids=torch.cat([types, text], dim=1),
        attention_mask=valid_BL,
        **{name: inputs[name] for name in grids if name in inputs},
    )[0]
    return positions


@torch.inference_mode()
def greedy(
    model: Any, inputs: Any, more: More | None, policy: Policy | None, limit: int
) -> tuple[Tensor, Tensor]:
    """Greedy completions of a prompt and what follows it.

    Args:
        model: in evaluation mode.
        inputs: of `sf.data.vision.encode`, the prompt: selection is among its tokens.
        more: tokens that continue on the prompt's cache; None for none.
        policy: how the prompt is read; None is dense.
        limit: tokens at most.

    Returns:
        Completions, long [B, T], the end token and what follows it included, and token ratios at
        the prompt, float (layers, B) on the CPU.
    """
    width = inputs["input_ids"].shape[1]
    ids, valid = inputs["input_ids"], inputs["attention_mask"]
    if more is not None:
        ids, valid = torch.cat([ids, more.ids], dim=1), torch.cat([valid, more.valid], dim=1)
    positions = positions_of(model, inputs, ids, valid)
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=ids.device)
    context = nullcontext() if policy is None else sparsify(model, policy)
    found: list[Tensor] = []
    with context as trace:
        output = model(
            **inputs, position_ids=positions[..., :width], use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values

        def forward(ids: Tensor, positions: Tensor) -> Any:
            return model(
                input_ids=ids,
                attention_mask=valid,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )

        if more is not None:
            output = forward(more.ids, positions[..., width:])
        last, ended = positions[..., -1:], torch.zeros(len(ids), dtype=torch.bool)
        for _ in range(limit):
            token = output.logits[:, -1].argmax(-1)
            found.append(token)
            ended = ended | torch.isin(token, ends).cpu()
            if len(found) == limit or bool(ended.all()):
                break
            valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
            last = last + 1
            output = forward(token[:, None], last)
    layers = model.config.get_text_config().num_hidden_layers
    dense = torch.ones(layers, len(ids))
    return torch.stack(found, dim=1), dense if trace is None else trace.layer_ratios.float().cpu()


def cut(completion: Tensor, ends: Any) -> Tensor:
    """A completion up to its first end token."""
    at = torch.isin(completion, torch.as_tensor(ends, device=completion.device)).nonzero()
    return completion[: int(at[0])] if len(at) else completion
