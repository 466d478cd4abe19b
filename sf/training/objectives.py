"""The trained objectives: a tagged union, each class with its settings and what it fixes.

`sections` names the parameter sections that hold an objective's settings; a nested section has the
name of its field.

Imported without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sf.training.block_config import BlockSettings, MobaSettings, NsaSettings, VideoNsaSettings
from sf.training.distil_config import DistilSettings
from sf.training.pathwise_config import SparsityTermSettings
from sf.training.sharpness_config import SharpnessSettings
from sf.training.trainer_config import Grpo, Rollouts

if TYPE_CHECKING:
    from sf.attention.blocks import BlockAttention

__all__ = [
    "OBJECTIVES",
    "AnyObjective",
    "Distil",
    "Moba",
    "Nsa",
    "Objective",
    "Pathwise",
    "Sharpness",
    "SparsityForcing",
    "VideoNsa",
    "ZipvlSft",
    "block_attention",
]


class SparsityForcing(Grpo):
    """Sparsity Forcing as in the paper."""

    about: ClassVar[str] = (
        "Sparsity Forcing (arXiv 2504.18579): GRPO with token-sparse rollouts, a different "
        "retention threshold for each rollout of a group, a full-attention reference."
    )

    sections: ClassVar[tuple[str, ...]] = ("rollouts", "grpo")

    objective: Literal["sparsity_forcing"] = Field(description="GRPO with token-sparse rollouts")


class Pathwise(Grpo):
    """Sparsity Forcing with a differentiable sparsity term, which is not in the paper."""

    about: ClassVar[str] = (
        "Sparsity Forcing (arXiv 2504.18579) with a differentiable sparsity term for right "
        "rollouts, which is not in the paper."
    )

    sections: ClassVar[tuple[str, ...]] = ("rollouts", "grpo")

    objective: Literal["pathwise"] = Field(description="GRPO with a differentiable sparsity term")
    pathwise: SparsityTermSettings = Field(description="the sparsity term")

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> Pathwise:
        if self.pathwise.target is None:
            return self
        if not isinstance(self.retention_p, list):
            raise ValueError(
                "pathwise.target is measured at the largest retention_p and needs a list of them"
            )
        if self.rollout_selector == "top_k":
            raise ValueError("pathwise.target has no use with top_k: retention_p is the ratio")
        return self


class Distil(Rollouts, DistilSettings):
    """Distillation from full attention under ZipVL's selection, with a target token ratio."""

    about: ClassVar[str] = (
        "distillation from the base model's full attention on the data set's answers, with "
        "ZipVL's token selection (arXiv 2410.08584) active and a differentiable sparsity term that "
        "steers to a token ratio; not in the paper."
    )

    sections: ClassVar[tuple[str, ...]] = ("rollouts", "distil")

    objective: Literal["distil"] = Field(description="distillation towards a target token ratio")

    @model_validator(mode="after")
    def _ratio_can_be_reached(self) -> Distil:
        if not isinstance(self.retention_p, list):
            raise ValueError(
                "target_token_ratio is measured at the largest retention_p below 1 and needs a "
                "list of them"
            )
        if self.rollout_selector != "top_p":
            raise ValueError("target_token_ratio needs rollout_selector top_p")
        if min(self.retention_p) == 1.0:
            raise ValueError("target_token_ratio needs a retention_p below 1")
        return self


class ZipvlSft(Rollouts):
    """Supervised fine-tuning under ZipVL's selection."""

    about: ClassVar[str] = (
        "supervised fine-tuning on the data set's answers with ZipVL's token selection "
        "(arXiv 2410.08584) active, every question under each of the training thresholds."
    )

    sections: ClassVar[tuple[str, ...]] = ("rollouts",)

    objective: Literal["zipvl_sft"] = Field(description="fine-tuning under ZipVL's selection")


class _Dense:
    """Every question once, no tokens selected away."""

    group_size: ClassVar[int] = 1
    rollout_selector: ClassVar[Literal["top_p"]] = "top_p"
    retention_p: ClassVar[list[float]] = [1.0]


class Sharpness(_Dense, SharpnessSettings):
    """Supervised fine-tuning with sharpened attention rows."""

    about: ClassVar[str] = (
        "supervised fine-tuning on the data set's answers with full attention and a regulariser "
        "that sharpens attention rows; the token selection is for inference."
    )

    sections: ClassVar[tuple[str, ...]] = ("sharpness",)

    objective: Literal["sharpness"] = Field(description="fine-tuning that sharpens attention")


class Moba(_Dense, MobaSettings):
    """Supervised fine-tuning with MoBA."""

    about: ClassVar[str] = (
        "supervised fine-tuning on the data set's answers with MoBA (arXiv 2502.13189) in the "
        "place of the attention."
    )

    sections: ClassVar[tuple[str, ...]] = ("moba",)

    objective: Literal["moba"] = Field(description="fine-tuning with MoBA as the attention")


class Nsa(_Dense, NsaSettings):
    """Supervised fine-tuning with NSA."""

    about: ClassVar[str] = (
        "supervised fine-tuning on the data set's answers with NSA (arXiv 2502.11089) in the place "
        "of the attention."
    )

    sections: ClassVar[tuple[str, ...]] = ("nsa",)

    objective: Literal["nsa"] = Field(description="fine-tuning with NSA as the attention")


class VideoNsa(_Dense, VideoNsaSettings):
    """Supervised fine-tuning with VideoNSA."""

    about: ClassVar[str] = (
        "supervised fine-tuning on the data set's answers with VideoNSA (arXiv 2510.02295) in the "
        "place of the attention; not in the paper."
    )

    sections: ClassVar[tuple[str, ...]] = ("videonsa",)

    objective: Literal["videonsa"] = Field(description="fine-tuning with VideoNSA as the attention")


AnyObjective = SparsityForcing | Pathwise | Distil | ZipvlSft | Sharpness | Moba | Nsa | VideoNsa
Objective = Annotated[AnyObjective, Field(discriminator="objective")]
OBJECTIVES: dict[str, type[AnyObjective]] = {
    "sparsity_forcing": SparsityForcing,
    "pathwise": Pathwise,
    "distil": Distil,
    "zipvl_sft": ZipvlSft,
    "sharpness": Sharpness,
    "moba": Moba,
    "nsa": Nsa,
    "videonsa": VideoNsa,
}


def block_attention(objective: AnyObjective) -> BlockAttention | None:
    """The attention that replaces the model's own in training."""
    return objective.attention() if isinstance(objective, BlockSettings) else None
