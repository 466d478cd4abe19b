"""Sparsity Forcing (arXiv 2504.18579) on TRL's GRPOTrainer.

The policy runs under token-sparse attention, each rollout of a group with its own retention
threshold; the reference is the initial model with full attention. The policy's log-probabilities
are taken under the kept sets that the rollout recorded, so training matches inference.

Private names are overridden (`OVERRIDDEN`, their signatures are tested): TRL 1.16 has no public
interface for extra tensors between rollout and loss, and its loss silently drops videos. The loss
itself, advantages and the optimiser loop are TRL's.

Shapes: R local rollouts, P padded prompt length, C completion length, J layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from sf.extras import extra
from sf.training.encoding import Encoder
from sf.training.generation import RolloutGeneration
from sf.training.latency import LatencyModel
from sf.training.logps import PolicyForward
from sf.training.reference import reference_logps
from sf.training.retention_schedule import RetentionSchedule
from sf.training.rewards import GroupReward, ScoredRollouts
from sf.training.rollout import Sampler
from sf.training.sampling import forbidden_ids, truncations
from sf.training.sharding import is_sharded, shard_reference
from sf.training.sparsity_weight import PathwiseWeight
from sf.training.trainer_settings import check_grpo_config

with extra("train"):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

__all__ = ["OVERRIDDEN", "SparsityForcingTrainer"]

OVERRIDDEN = (
    "_generate_and_score_completions",
    "_get_per_token_logps_and_entropies",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_save_optimizer_and_scheduler",
)


class SparsityForcingTrainer(RolloutGeneration, GRPOTrainer):
    """GRPO with sparse rollouts.

    TRL settings that would have no effect are refused (`sf.training.trainer_settings`).
    Evaluations during training always sample the same answers and do not affect training's
    random numbers, rollouts and metrics; their metrics are named `eval_...`.

    Args:
        model: the policy; its folder (`name_or_path`) holds the reference.
        processor: of the model.
        args: TRL's settings (`sf.training.settings.grpo_config`).
        dataset: columns `prompt`, `row` (index for `encoder`), `problem_type`, `solution`.
        encoder: row index -> question.
        schedule: how sparse each rollout is, and by which selector.
        reward: the group's reward; its `gather` and `rank` are set here.
        pathwise: weight of the sparsity term (`sf.training.pathwise`); None is the paper's
            objective.
        samples: takes the first group's rollouts of each logged step (`records.SampleTable.add`).
        callbacks: transformers callbacks.
        eval_dataset: columns as of `dataset`, for `args.eval_strategy`.

    Raises:
        ConfigError: a setting would not be honoured.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        args: GRPOConfig,
        dataset: Dataset,
        encoder: Encoder,
        schedule: RetentionSchedule,
        reward: GroupReward,
        pathwise: PathwiseWeight | None = None,
        samples: Callable[[int, list[dict[str, Any]]], None] | None = None,
        callbacks: Sequence[Any] = (),
        eval_dataset: Dataset | None = None,
    ) -> None:
        check_grpo_config(
            args, model, schedule.group_size, reward.num_generations,
            sharded=is_sharded(model), pathwise=pathwise is not None,
        )  # fmt: skip
        state = args.distributed_state
        rank = state.process_index if state else 0
        self._scored = ScoredRollouts(replace(reward, gather=self._gather, rank=rank))
        functions: list[Any] = [self._scored.correctness, self._scored.efficiency]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model=model,
                reward_funcs=functions,
                args=args,
                train_dataset=dataset,
                eval_dataset=eval_dataset,
                processing_class=processor,
                callbacks=list(callbacks),
                rollout_func=self._rollout,
            )
        if self.sharded and self.ref_model is not None:
            half = "bfloat16" if args.bf16 else "float32"
            shard_reference(self.ref_model, model, args.device.type, half)
        self.encoder, self.schedule = encoder, schedule
        self.pathwise, self.samples = pathwise, samples
        self.latency = LatencyModel.of(model)
        self.sampler = Sampler(
            temperature=args.temperature,
            max_completion_tokens=cast(int, args.max_completion_length),
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self._tokenizer.pad_token_id,
            forbidden=forbidden_ids(self._tokenizer, model),
            make_policy=schedule.policy,
            truncate=truncations(args.top_k or 0, args.top_p, args.min_p or 0.0),
        )
        self._train_logps = torch.empty(0)

    # -- log-probabilities ------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Policy: under the replayed kept sets. Reference: full attention, each prompt once.

        Args:
            model: the policy (perhaps wrapped) or the reference.
            input_ids: (R, P + C).
            attention_mask: (R, P + C).
            logits_to_keep: C.
            batch_size: rollouts in one forward; None for all.
            compute_entropy: also give entropies.
            compute_aux_loss: of mixture-of-experts models, which are refused.

        Returns:
            log-probabilities (R, C), entropies (R, C) or None, None.
        """
        generation, rows = self._generations[self.mode], self._batch
        if rows is None:
            rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        size = batch_size or len(rows)
        if model is self.ref_model or self._adapters_off():
            with torch.no_grad(), self._whole(model) as whole, self.accelerator.autocast():
                logps = reference_logps(
                    whole, generation.rollout, rows, input_ids, attention_mask, logits_to_keep,
                    temperature=self.temperature, rollouts_per_forward=size,
                )  # fmt: skip
            return logps, None, None
        forward = PolicyForward(
            model=model,
            bare=self.accelerator.unwrap_model(model),
            forced=generation.rollout,
            temperature=self.temperature,
            bucketed=self.accelerator.num_processes == 1,
            coefficient=generation.coefficient,
            shares=generation.shares,
            passes=generation.rollout.passes,
            entropy_gradient=self._entropy_bonus_enabled,
        )
        with self.accelerator.autocast():
            outputs = [
                forward(
                    rows[at : at + size],
                    input_ids[at : at + size],
                    attention_mask[at : at + size],
                    logits_to_keep,
                )
                for at in range(0, len(rows), size)
            ]
        logps, entropies = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        self._train_logps = logps.detach()
        if forward.measured:
            self._figures.add_rollouts({"effective_ratio": torch.cat(forward.measured)})
        return logps, entropies if compute_entropy else None, None

    def _adapters_off(self) -> bool:
        """With PEFT the policy without its adapters is the reference."""
        if self.ref_model is not None or self.beta == 0.0:
            return False
        model = self.accelerator.unwrap_model(self.model)
        # Of the layers only: a transformers model has a method of this name.
        return any(getattr(module, "disable_adapters", False) is True for module in model.modules())

    # -- loss -------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """TRL's loss on the micro-batch's own rollouts.

        Raises:
            TrainingCollapse: the loss is not finite on some rank.
        """
        self._batch = inputs["rollout"]
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._require_finite(loss)
        # Later steps on the same rollouts have moved away from the policy that sampled them.
        if self._generations[self.mode].step == self.state.global_step:
            self._figures.add_gap(
                self._train_logps, inputs["sampling_per_token_logps"], inputs["completion_mask"]
            )
        return loss
