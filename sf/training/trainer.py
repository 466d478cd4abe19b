"""Sparsity Forcing (arXiv 2504.18579) on TRL's GRPOTrainer.

The policy runs under token-sparse attention, each rollout of a group with its own retention
threshold; the reference is the initial model with full attention. The policy's log-probabilities
are taken under the kept sets that the rollout recorded, so training matches inference.

Private names are overridden (`OVERRIDDEN`, their signatures are tested): TRL 1.16 has no public
place for extra tensors between rollout and loss, and its own loss forward drops videos without a
word. The loss itself, advantages and the optimiser loop are TRL's.

Shapes: R local rollouts, P padded prompt length, C completion length, J layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch

from sf.extras import extra
from sf.training.encoding import Encoder, Prompts
from sf.training.latency import LatencyModel
from sf.training.logps import PolicyForward
from sf.training.reference import reference_logps
from sf.training.resumable_trainer import ResumableTrainer
from sf.training.retention_schedule import RetentionSchedule
from sf.training.rewards import GroupReward, ScoredRollouts
from sf.training.rollout import Rollout, Sampler, sampling_seeds, vision_token_ids
from sf.training.sharding import gathered, shard_reference
from sf.training.sparsity_weight import PathwiseWeight
from sf.training.step_metrics import shown_rollouts

with extra("train"):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import unwrap_model_for_generation

__all__ = ["OVERRIDDEN", "SparsityForcingTrainer"]

OVERRIDDEN = (
    "_generate_and_score_completions",
    "_get_per_token_logps_and_entropies",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_save_optimizer_and_scheduler",
)


class SparsityForcingTrainer(ResumableTrainer, GRPOTrainer):
    """GRPO with sparse rollouts.

    Args:
        model: the policy; its folder (`name_or_path`) holds the reference.
        processor: of the model.
        args: TRL's settings (`sf.training.settings.grpo_config`).
        dataset: columns `prompt`, `row` (index for `encoder`), `problem_type`, `solution`.
        encoder: row index -> question.
        levels: how sparse each rollout is, and by which selector.
        reward: the group's reward; its `gather` and `rank` are set here.
        pathwise: weight of the sparsity term (`sf.training.pathwise`); None is the paper's
            objective.
        samples: takes the first group's rollouts of each logged step (`records.SampleTable.add`).
        callbacks: transformers callbacks.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        args: GRPOConfig,
        dataset: Dataset,
        encoder: Encoder,
        levels: RetentionSchedule,
        reward: GroupReward,
        pathwise: PathwiseWeight | None = None,
        samples: Callable[[int, list[dict[str, Any]]], None] | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
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
                processing_class=processor,
                callbacks=list(callbacks),
                rollout_func=self._rollout,
            )
        if self.sharded and self.ref_model is not None:
            half = "bfloat16" if args.bf16 else "float32"
            shard_reference(self.ref_model, model, args.device.type, half)
        self.encoder, self.levels, self.pathwise, self.samples = encoder, levels, pathwise, samples
        self.latency = LatencyModel.of(model)
        self.sampler = Sampler(
            temperature=args.temperature,
            max_completion_tokens=args.max_completion_length or 256,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self._tokenizer.pad_token_id,
            forbidden=vision_token_ids(self._tokenizer),
            make_policy=levels.policy,
        )
        self.rollout: Rollout | None = None
        self._rows: list[int] = []
        self._batch: torch.Tensor | None = None
        self._train_logps = torch.empty(0)
        self._coefficient: torch.Tensor | None = None
        self._shares: torch.Tensor | None = None
        self._every: dict[str, torch.Tensor] = {}

    # -- rollouts ---------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, with the rows noted for the rollout and the rollouts' indices in its output.

        TRL permutes and splits every entry of the output along the rollouts, indices included.
        """
        self._rows = [int(example["row"]) for example in inputs]
        self._batch = None
        output = super()._generate_and_score_completions(inputs)
        device = self.accelerator.device
        output["rollout"] = torch.arange(len(inputs), device=device)
        self._weigh(len(inputs))
        step = self.state.global_step + 1
        if self.samples is not None and step % int(self.args.logging_steps) == 0:
            rows, scored = [self.encoder.rows[row] for row in self._rows], self._scored
            shown = shown_rollouts(
                cast(Rollout, self.rollout), self.levels.group_size, rows, scored.correct,
                output["advantages"], scored.texts,
            )  # fmt: skip
            if self.is_world_process_zero():
                self.samples(step, shown)
        return output

    def _weigh(self, count: int) -> None:
        """This step's coefficients of the sparsity term, from its rollouts."""
        if self.pathwise is None:
            return
        step, most = self.state.global_step, self.levels.most
        weight, ratio, self._shares = self.pathwise.of_step(step, self._every, most)
        # The loss is a mean over rollouts, of a micro-batch and then of the micro-batches.
        correct = torch.tensor(self._scored.correct, device=self.accelerator.device)
        counted = self.pathwise.counted(correct)
        self._coefficient = counted * (weight / count) if weight else None
        self._figures.add("pathwise_weight", weight)
        self._figures.add("pathwise_ratio", ratio)

    def _shares_prompts(self) -> bool:
        """Whether the rollout's forward over the prompts is the training forward's as well.

        Its graph stays in memory from sampling to loss. That costs nothing where all rollouts of a
        step are learnt from in one forward. It cannot be where activations are not kept anyway
        (gradient checkpointing), where sharded weights are gone by then, where the tower learns as
        well, and with the sparsity term, whose weight follows from the answers.
        """
        return not (
            self.args.gradient_accumulation_steps > 1
            or self.args.gradient_checkpointing
            or self.sharded
            or self.pathwise is not None
            or not self.encoder.frozen_tower
        )

    def _rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: one completion for each of the R local prompts."""
        unique = list(dict.fromkeys(self._rows))
        questions = Prompts.collate(
            [self.encoder(row) for row in unique], self._tokenizer.pad_token_id
        )
        place = {row: at for at, row in enumerate(unique)}
        device, args = self.accelerator.device, cast(Any, self.args)
        owner = torch.tensor([place[row] for row in self._rows], device=device)
        # Places in the global batch: a group may begin on another rank.
        first = self.accelerator.process_index * len(prompts)
        places = range(first, first + len(prompts))
        with self._whole(self.model_wrapped) as model, self.accelerator.autocast():
            self.rollout = None  # with what it still holds
            rollout = self.sampler(
                model,
                questions,
                owner,
                self.levels(self.state.global_step, places),
                sampling_seeds(args.seed, self.state.global_step, places),
                bucketed=self.accelerator.num_processes == 1,
                shared=self._shares_prompts(),
            )
        self.rollout = rollout
        mask = questions.attention_mask.bool()
        answered = torch.tensor([len(ids) for ids in rollout.completion_ids], device=device)
        latency = self.latency.ratio(mask.sum(1)[owner], rollout.layer_ratios, answered)
        self._every = self._figures.add_rollouts({**rollout.figures(), "latency_ratio": latency})
        ids = [row[valid].tolist() for row, valid in zip(questions.input_ids, mask, strict=True)]
        return {
            "prompt_ids": [ids[at] for at in owner.tolist()],
            "completion_ids": rollout.completion_ids,
            "logprobs": rollout.logps,
            "token_ratio": rollout.token_ratio.tolist(),
            "latency_ratio": latency.tolist(),
        }

    @contextmanager
    def _whole(self, model: Any) -> Iterator[Any]:
        """The bare model with all its weights on this rank, for any number of forwards."""
        kwargs = cast(Any, self.args).gradient_checkpointing_kwargs
        with (
            unwrap_model_for_generation(
                model, self.accelerator, gradient_checkpointing_kwargs=kwargs
            ) as bare,
            gathered(bare),
        ):
            yield bare

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
            compute_aux_loss: of mixture-of-experts models, which are not supported here.

        Returns:
            log-probabilities (R, C), entropies (R, C) or None, None.
        """
        assert self.rollout is not None
        assert not compute_aux_loss
        rows = self._batch
        if rows is None:
            rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        size = batch_size or len(rows)
        if model is self.ref_model or self._adapters_off():
            with torch.no_grad(), self._whole(model) as whole, self.accelerator.autocast():
                logps = reference_logps(
                    whole, self.rollout, rows, input_ids, attention_mask, logits_to_keep,
                    temperature=self.temperature, rollouts_per_forward=size,
                )  # fmt: skip
            return logps, None, None
        forward = PolicyForward(
            model=model,
            bare=self.accelerator.unwrap_model(model),
            forced=self.rollout,
            temperature=self.temperature,
            # The fused head reads its weights itself, whole or not.
            fused=input_ids.is_cuda and not self.sharded,
            bucketed=self.accelerator.num_processes == 1,
            coefficient=self._coefficient,
            shares=self._shares,
            passes=self.rollout.passes,
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
        self._figures.add_gap(
            self._train_logps, inputs["sampling_per_token_logps"], inputs["completion_mask"]
        )
        return loss
