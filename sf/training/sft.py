"""Supervised fine-tuning on the dataset's answers under token-sparse attention.

This is transformers' Trainer with the teacher-forced sparse forward pass of the GRPO objectives.
(TRL's SFTTrainer has its own collator and forward pass, which encode media again for every row of
every step and support neither selection by row nor rows that share one encoding.)

The loss covers only the answer's tokens and its end token: it is averaged over an answer's tokens,
then over answers, so micro-batches and ranks of equal size need no weighting.

Shapes: R answers, C answer length, J layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import TrainingArguments

from sf.attention import Trace
from sf.attention.blocks import Replacement
from sf.extras import extra
from sf.selection import Policy
from sf.training.answers import AnswerBatch, gather_answers
from sf.training.encoding import Encoder
from sf.training.logps import PolicyForward
from sf.training.pathwise import Measure, effective_ratio
from sf.training.resumable_trainer import ResumableTrainer
from sf.training.retention_schedule import RetentionSchedule
from sf.training.trainer_settings import check_arguments

with extra("train"):
    from datasets import Dataset

__all__ = ["AnswerForward", "SparseSFTTrainer"]


@dataclass
class AnswerForward(PolicyForward):
    """Gives each token's loss and, in the entropies' place, whether it is the likeliest one.

    Attributes:
        replacement: the attention that the model has for good; None: its own, with a selection.
    """

    replacement: Replacement | None = None

    def _attention(
        self, policy: Policy, prompt_width: int, skip_dropped: bool
    ) -> AbstractContextManager[Trace]:
        if self.replacement is None:
            return super()._attention(policy, prompt_width, skip_dropped)
        self.replacement.prompt_width = prompt_width
        return nullcontext(self.replacement.trace)

    def _head(
        self, rows: torch.Tensor, inputs: dict[str, Any], width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self._scores(inputs, width)
        return -scores.logps, scores.likeliest


class SparseSFTTrainer(ResumableTrainer):
    """Maximum likelihood of the right answers.

    Attributes:
        measured_name: what the regulariser's value is logged as.

    Args:
        model: the model.
        processor: of the model.
        args: `sf.training.settings.sft_arguments`.
        dataset: columns `row` (index for `encoder`) and `place` (`sf.training.answers.answer_set`).
        encoder: row index -> question.
        schedule: how sparse each entry of a question's group is.
        sharpness_weight: of the regulariser over attention rows; 0: none.
        measure: the regulariser (`sf.training.sharpness.KINDS`).
        replacement: an open attention that replaces the model's own in training.
        samples: takes the first question of each logged step (`records.SampleTable.add`).
        callbacks: transformers callbacks.

    Raises:
        ConfigError: a setting would not be honoured.
    """

    measured_name = "sharpness"

    def __init__(
        self,
        model: Any,
        processor: Any,
        args: TrainingArguments,
        dataset: Dataset,
        encoder: Encoder,
        schedule: RetentionSchedule,
        sharpness_weight: float = 0.0,
        measure: Measure = effective_ratio,
        replacement: Replacement | None = None,
        samples: Callable[[int, list[dict[str, Any]]], None] | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        check_arguments(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=_collate,
            processing_class=processor,
            callbacks=list(callbacks),
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch
        self.encoder, self.schedule, self.samples = encoder, schedule, samples
        self.sharpness_weight, self.measure = sharpness_weight, measure
        self.replacement = replacement
        self._shown = -1

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Mean loss of the micro-batch's answers, () float32: the negative log-likelihood.

        The regulariser's gradient joins in the backward pass; its value is not part of the loss.

        Raises:
            TrainingCollapse: the loss is not finite on some rank.
        """
        assert not return_outputs
        answers = gather_answers(
            self.encoder,
            cast(Any, self.processing_class).tokenizer,
            inputs["row"].tolist(),
            self.schedule(self.state.global_step, inputs["place"].tolist()),
            self.schedule,
        )
        forward = self._forward(model, answers)
        rows = torch.arange(len(answers.owner), device=answers.owner.device)
        with self.accelerator.autocast():
            losses, likeliest = forward(
                rows, answers.input_ids, answers.attention_mask, answers.width
            )
        mask = answers.answer_mask
        of_answers = (losses * mask).sum(1) / mask.sum(1)
        loss = of_answers.mean()
        self._require_finite(loss)
        correct = ((likeliest == 1) | (mask == 0)).all(1).float()
        ratios = torch.empty(len(forward.ratios[0][1]), len(rows), device=rows.device)
        for bucket, part in forward.ratios:
            ratios[:, bucket] = part.to(rows.device)
        figures = {
            "accuracy": correct,
            "token_ratio": ratios.mean(0),
            "retention_p": torch.tensor(answers.retention_p, device=rows.device),
            **{f"token_ratio_layer/{at}": own for at, own in enumerate(ratios)},
        }
        if forward.measured:
            # In any order: a mean is logged.
            figures[self.measured_name] = torch.cat(forward.measured)
        self._observe(self._figures.add_rollouts(figures))
        tokens = answers.attention_mask.sum().reshape(1)
        self.state.num_input_tokens_seen += int(self._gather(tokens).sum())
        self._show(answers, inputs["row"].tolist(), of_answers, figures)
        return loss

    def _forward(self, model: Any, answers: AnswerBatch) -> AnswerForward:
        bare = self.accelerator.unwrap_model(model)
        coefficient, shares, device = None, None, answers.owner.device
        if self.sharpness_weight:
            # The loss is a mean over answers, of a micro-batch and then of the micro-batches.
            count = len(answers.owner) * self.current_gradient_accumulation_steps
            weight = self.sharpness_weight / count
            coefficient = torch.full((len(answers.owner),), weight, device=device)
            layers = bare.config.get_text_config().num_hidden_layers
            shares = torch.full((layers,), 1 / layers, device=device)
        return AnswerForward(
            model=model,
            bare=bare,
            forced=answers,
            temperature=1.0,
            bucketed=self.accelerator.num_processes == 1,
            coefficient=coefficient,
            shares=shares,
            measure=self.measure,
            replacement=self.replacement,
        )

    def _observe(self, figures: dict[str, torch.Tensor]) -> None:
        """Told the figures of all ranks' answers, by name (R,), after each micro-batch."""

    def _show(
        self, answers: AnswerBatch, rows: list[int], losses: torch.Tensor, figures: dict[str, Any]
    ) -> None:
        """The first question of a step that will be logged."""
        step = self.state.global_step + 1
        skip = step == self._shown or step % self.state.logging_steps
        if self.samples is None or skip or not self.is_world_process_zero():
            return
        self._shown = step
        of_first_question = [at for at in range(len(rows)) if rows[at] == rows[0]]
        self.samples(
            step,
            [
                {
                    "id": self.encoder.rows[rows[at]].id,
                    "retention_p": round(answers.retention_p[at], 6),
                    "token_ratio": round(float(figures["token_ratio"][at]), 6),
                    "correct": float(figures["accuracy"][at]),
                    "loss": round(float(losses[at].detach()), 6),
                    "solution": self.encoder.rows[rows[at]].solution,
                }
                for at in of_first_question
            ],
        )


def _collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """(R,) long each: row indices and places in the run."""
    return {
        name: torch.tensor([example[name] for example in examples]) for name in ("row", "place")
    }
