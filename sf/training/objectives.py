"""The trained objectives: what each is, and what it changes in the parameters.

Imported without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sf.training.parameters import RunParameters

if TYPE_CHECKING:
    from sf.attention.blocks import BlockAttention

__all__ = ["RECIPES", "Recipe", "block_attention", "settled"]


@dataclass(frozen=True)
class Recipe:
    """One objective.

    Attributes:
        learner: "grpo" samples answers and rewards them; "sft" is shown the data set's answers.
        about: one sentence for the model card.
        changes: parameters that the objective sets itself.
    """

    learner: Literal["grpo", "sft"]
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)


ONE_DENSE_LEVEL = {
    "group_size": 1,
    "rollout_selector": "top_p",
    "rollout_draw": "grid",
    "rollout_p": [1.0],
}
"""Every question once, no tokens selected away."""

RECIPES: Mapping[str, Recipe] = {
    "sparsity_forcing": Recipe(
        "grpo",
        "Sparsity Forcing (arXiv 2504.18579): GRPO with token-sparse rollouts, a different "
        "retention threshold for each rollout of a group, a full-attention reference.",
    ),
    "v1_range": Recipe(
        "grpo",
        "Sparsity Forcing (arXiv 2504.18579) with thresholds drawn from U(0, 1), as in the text of "
        "its first version.",
        {"rollout_draw": "uniform", "rollout_range": [0.0, 1.0]},
    ),
    "pathwise": Recipe(
        "grpo",
        "Sparsity Forcing (arXiv 2504.18579) with a differentiable sparsity term for right "
        "rollouts, which is not in the paper.",
    ),
    "zipvl_sft": Recipe(
        "sft",
        "supervised fine-tuning on the data set's answers with ZipVL's token selection "
        "(arXiv 2410.08584) active, every question under each of the training thresholds.",
    ),
    "sharpness": Recipe(
        "sft",
        "supervised fine-tuning on the data set's answers with full attention and a regulariser "
        "that sharpens attention rows; the token selection is for inference.",
        ONE_DENSE_LEVEL,
    ),
    "moba": Recipe(
        "sft",
        "supervised fine-tuning on the data set's answers with MoBA (arXiv 2502.13189) in the "
        "place of the attention.",
        ONE_DENSE_LEVEL,
    ),
    "nsa": Recipe(
        "sft",
        "supervised fine-tuning on the data set's answers with NSA (arXiv 2502.11089) in the place "
        "of the attention.",
        ONE_DENSE_LEVEL,
    ),
}


def settled(p: RunParameters) -> RunParameters:
    """The parameters that a run goes by: those given, with the objective's own in their place."""
    return p.model_copy(update=dict(RECIPES[p.objective].changes))


def block_attention(p: RunParameters) -> BlockAttention | None:
    """The attention that the objective trains in the place of the model's own."""
    from sf.attention.blocks import MobaAttention, NsaAttention

    if p.objective == "moba":
        return MobaAttention(p.moba_top_k, p.moba_block)
    if p.objective == "nsa":
        return NsaAttention(
            p.nsa_top_n,
            p.nsa_compress_block,
            p.nsa_compress_stride,
            p.nsa_select_block,
            p.nsa_window,
        )
    return None
