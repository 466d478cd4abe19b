"""Distillation from full attention: the student under token-sparse attention, fewer tokens asked.

The loss is the teacher's whole distribution at each token of the data set's answers, not a reward:
one number for each entry of the vocabulary and each token, where a rollout has one number in all.
Beside it stands a differentiable sparsity term (`sf.training.pathwise`), whose weight is a dual
variable: it grows while the token ratio is above its target and fades to 0 at the target, so that
what is left of the run recovers the answers at that ratio. Not in the paper.

Shapes: R answers, C answer length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sf.attention.decoder_hooks import unwrapped
from sf.training.answers import AnswerBatch
from sf.training.distil_config import DistilSettings
from sf.training.pathwise import Measure, effective_ratio, tail_excess
from sf.training.sft import AnswerForward, SparseSFTTrainer
from sf.training.sparsity_weight import LaggedWeight
from sf.training.teacher import Distance, Teacher, compared

__all__ = ["DistilForward", "DistilTrainer"]


def _measure(settings: DistilSettings, retention_p: float) -> Measure:
    """The sparsity term.

    Args:
        settings: of the objective.
        retention_p: at which `target_token_ratio` is to be reached.
    """
    if settings.sparsity_measure == "effective":
        return effective_ratio
    ratio = settings.target_token_ratio
    return partial(tail_excess, token_ratio=ratio, retention_p=retention_p)


@dataclass(kw_only=True)
class DistilForward(AnswerForward):
    """Gives each token's distance from the teacher.

    Attributes:
        teacher: the teacher model.
        hidden: (R, C, H), the teacher's hidden states of the answers.
        hidden_weight: of the hidden states' distance relative to the KL divergence.
    """

    teacher: Teacher
    hidden: torch.Tensor
    hidden_weight: float

    def _head(
        self, rows: torch.Tensor, inputs: dict[str, Any], width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets = inputs["input_ids"][:, -width:]
        with compared(self.bare, self.teacher, self.hidden[rows], targets):
            distance = Distance.of(self.model(**inputs, logits_to_keep=width + 1))
        return distance.kl + self.hidden_weight * distance.hidden, distance.likeliest


class DistilTrainer(SparseSFTTrainer):
    """Learns a teacher's answers with fewer tokens.

    Args:
        teacher: the frozen base model.
        settings: of the objective.
        weight: of the sparsity term; follows the token ratio.
        *args, **kwargs: of `SparseSFTTrainer`.
    """

    measured_name = "sparsity_term"

    def __init__(
        self,
        *args: Any,
        teacher: Teacher,
        settings: DistilSettings,
        weight: LaggedWeight,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.settings, self.weight = teacher, settings, weight
        self.measure = _measure(settings, self.schedule.inference)

    def _forward(self, model: Any, answers: AnswerBatch) -> DistilForward:
        bare = self.accelerator.unwrap_model(model)
        bucketed = self.accelerator.num_processes == 1
        weight = self.weight.of_step(self.state.global_step)
        # The loss is a mean over answers, of a micro-batch and then of the micro-batches.
        count, device = len(answers.owner), answers.owner.device
        share = weight / (count * self.current_gradient_accumulation_steps)
        layers = unwrapped(bare).config.get_text_config().num_hidden_layers
        with self.accelerator.autocast():
            hidden = self.teacher.hidden(answers, bucketed)
        return DistilForward(
            model=model,
            bare=bare,
            forced=answers,
            temperature=1.0,
            bucketed=bucketed,
            coefficient=torch.full((count,), share, device=device),
            shares=torch.full((layers,), 1 / layers, device=device),
            measure=self.measure,
            teacher=self.teacher,
            hidden=hidden,
            hidden_weight=self.settings.hidden_weight,
        )

    def _observe(self, figures: dict[str, torch.Tensor]) -> None:
        self._figures.add("pathwise_weight", self.weight.current)
        for ratio in self.weight.observe(figures, self.schedule.inference).tolist():
            self._figures.add("pathwise_ratio", ratio)
