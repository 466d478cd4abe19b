"""Log-probabilities of the full-attention reference, each prompt run once per group."""

from __future__ import annotations

from typing import Any

import torch

from sf.training.encoding import encoder_outputs
from sf.training.rollout import Rollout
from sf.training.token_scores import TokenScores, scored

__all__ = ["reference_logps"]


def reference_logps(
    model: Any,
    rollout: Rollout,
    rows: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_width: int,
    *,
    temperature: float,
    rollouts_per_forward: int,
) -> torch.Tensor:
    """Dense log-probabilities of the completions.

    The prompt's keys and values are computed once per question and repeated for its rollouts: a
    group of N costs one prompt instead of N. Equal to the plain forward up to rounding.

    Args:
        model: the reference.
        rollout: the rollouts, from which `rows` are used.
        rows: (R,) long, indices into `rollout.owner`.
        input_ids: (R, P + C) long.
        attention_mask: (R, P + C) long.
        completion_width: C.
        temperature: of the sampling.
        rollouts_per_forward: bounds the memory of one pass.

    Returns:
        (R, C) float32; values after a completion's end are meaningless.
    """
    owner = rollout.owner[rows]
    result = torch.empty(len(rows), completion_width, device=input_ids.device)
    features = rollout.prompts.features(model)
    for chosen in _whole_groups(owner, rollouts_per_forward):
        result[chosen] = _group_logps(
            model, rollout, features, owner[chosen], input_ids[chosen], attention_mask[chosen],
            completion_width, temperature,
        )  # fmt: skip
    return result


def _whole_groups(owner: torch.Tensor, limit: int) -> list[torch.Tensor]:
    """Row indices in parts of whole groups, each part of `limit` rows or of one group."""
    parts: list[list[int]] = []
    for question in dict.fromkeys(owner.tolist()):
        members = (owner == question).nonzero().squeeze(1).tolist()
        if parts and len(parts[-1]) + len(members) <= limit:
            parts[-1] += members
        else:
            parts.append(members)
    return [torch.tensor(part, device=owner.device) for part in parts]


def _group_logps(
    model: Any,
    rollout: Rollout,
    features: list[torch.Tensor],
    owner: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_width: int,
    temperature: float,
) -> torch.Tensor:
    prompts = rollout.prompts
    unique, back = owner.unique(return_inverse=True)
    first = model(
        input_ids=prompts.input_ids[unique],
        attention_mask=prompts.attention_mask[unique],
        position_ids=prompts.position_ids(unique, slice(None)),
        mm_encoder_outputs=encoder_outputs(model, prompts, features, unique),
        use_cache=True,
        logits_to_keep=1,
    )
    answers = input_ids[:, -completion_width:]
    every = torch.log_softmax(first.logits[:, -1].float() / temperature, dim=-1)
    logps = every[back[:, None], answers[:, :1]]
    if completion_width > 1:
        cache = first.past_key_values
        cache.batch_select_indices(back)
        start = prompts.input_ids.shape[1]
        with scored(model, answers[:, 1:], temperature):
            output = model(
                input_ids=input_ids[:, start:-1],
                attention_mask=attention_mask[:, :-1],
                position_ids=prompts.position_ids(owner, slice(start, -1), completion_width),
                past_key_values=cache,
                use_cache=True,
            )
        logps = torch.cat([logps, TokenScores.of(output).logps], dim=1)
    return logps
