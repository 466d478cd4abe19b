"""The rollouts of a step: generated, scored and stored for the loss.

Shapes: R local rollouts, J layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from sf.extras import extra
from sf.training.encoding import Encoder, PromptBatch
from sf.training.latency import LatencyModel
from sf.training.resumable_trainer import ResumableTrainer
from sf.training.retention_schedule import RetentionSchedule
from sf.training.rewards import ScoredRollouts
from sf.training.rollout import Rollout, Sampler
from sf.training.sampling import sampling_seeds
from sf.training.sharding import gathered
from sf.training.sparsity_weight import PathwiseWeight
from sf.training.step_metrics import shown_rollouts

with extra("train"):
    from trl.models.utils import unwrap_model_for_generation

__all__ = ["Generation", "RolloutGeneration"]

_EVALUATION = 0x6576616C
"""Takes the step's place in the seeds of an evaluation: the same noise whenever it happens."""


@dataclass
class Generation:
    """The inputs of the losses on one generation's rollouts.

    Attributes:
        rollout: the rollouts.
        step: optimiser steps finished before it.
        coefficient: (R,) of the sparsity term in the loss; None without the term.
        shares: (J,) each layer's part of it.
        by_rank: values of all ranks' rollouts by the names of `Rollout.figures`.
    """

    rollout: Rollout
    step: int
    coefficient: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    by_rank: dict[str, torch.Tensor] = field(default_factory=dict)


class RolloutGeneration(ResumableTrainer):
    """Samples and scores for `SparsityForcingTrainer`; a base class placed before TRL's trainer.

    Attributes:
        encoder, schedule, pathwise, samples: as of `SparsityForcingTrainer`.
        latency: the cost model of the reward.
        sampler: draws the completions.
    """

    encoder: Encoder
    schedule: RetentionSchedule
    pathwise: PathwiseWeight | None
    samples: Callable[[int, list[dict[str, Any]]], None] | None
    latency: LatencyModel
    sampler: Sampler
    _scored: ScoredRollouts
    _tokenizer: Any
    num_generations: Any
    num_generations_eval: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._generations: dict[str, Generation] = {}
        self._rows: list[int] = []
        self._batch: torch.Tensor | None = None
        self._generated = (-1, 0)  # a step, and how many generations it had so far
        self._evaluated = 0  # rollouts of the current evaluation so far, of all ranks
        super().__init__(*args, **kwargs)

    @property
    def rollout(self) -> Rollout:
        """The latest rollouts of training, or of the evaluation while one runs."""
        return self._generations[self.mode].rollout

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, with the rows noted for the rollout and the rollouts' indices in its output.

        TRL permutes and splits every entry of the output along the rollouts, indices included.
        """
        training = self.mode == "train"
        self._rows = [int(example["row"]) for example in inputs]
        self._batch = None
        size = self.num_generations if training else self.num_generations_eval
        self._scored.group_size = size
        output: dict[str, Any] = cast(Any, super())._generate_and_score_completions(inputs)
        device = self.accelerator.device
        output["rollout"] = torch.arange(len(inputs), device=device)
        if training:
            self._weigh(len(inputs))
            self._show(output["advantages"])
        return output

    def _show(self, advantages: torch.Tensor) -> None:
        """The first group's rollouts, if a step that learns from them is logged."""
        every = self.state.logging_steps
        logged = [step for step in self._learning_steps() if step % every == 0]
        if self.samples is None or not logged:
            return
        rows = [self.encoder.rows[row] for row in self._rows]
        shown = shown_rollouts(
            self.rollout, self.schedule.group_size, rows, self._scored.correct, advantages,
            self._scored.texts,
        )  # fmt: skip
        if self.is_world_process_zero():
            self.samples(logged[0], shown)

    def _learning_steps(self) -> range:
        """The optimiser steps, counted from 1, that learn from the generation of this moment."""
        args, first = cast(Any, self.args), self.state.global_step + 1
        spent = args.steps_per_generation * args.num_iterations
        return range(first, first + max(1, spent // args.gradient_accumulation_steps))

    def _weigh(self, count: int) -> None:
        """This step's coefficients of the sparsity term, from its rollouts."""
        if self.pathwise is None:
            return
        generation = self._generations["train"]
        step, grid = self.state.global_step, self.schedule.grid
        densest = self.schedule.densest if grid else None
        weight, ratio, shares = self.pathwise.of_step(step, generation.by_rank, densest)
        # The loss is a mean over rollouts, of a micro-batch and then of the micro-batches.
        correct = torch.tensor(self._scored.correct, device=self.accelerator.device)
        counted = self.pathwise.counted(correct)
        generation.coefficient = counted * (weight / count) if weight else None
        generation.shares = shares
        self._figures.add("pathwise_weight", weight)
        self._figures.add("pathwise_ratio", ratio)

    def _shares_prompts(self) -> bool:
        """Whether the rollout's forward over the prompts is the training forward's as well.

        Its graph stays in memory from sampling to loss. That costs nothing where all rollouts of a
        generation are learnt from in one forward. It cannot be in an evaluation, where activations
        are not kept anyway (gradient checkpointing), where sharded weights are gone by then, where
        the tower learns as well, and with the sparsity term, whose weight follows from the answers.
        """
        args = cast(Any, self.args)
        return not (
            self.mode == "eval"
            or args.gradient_accumulation_steps > 1
            or args.steps_per_generation * args.num_iterations > 1
            or args.gradient_checkpointing
            or self.sharded
            or self.pathwise is not None
            or not self.encoder.frozen_tower
        )

    def _rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: one completion for each of the R local prompts."""
        unique = list(dict.fromkeys(self._rows))
        questions = PromptBatch.collate(
            [self.encoder(row) for row in unique], self._tokenizer.pad_token_id
        )
        place = {row: at for at, row in enumerate(unique)}
        device, args = self.accelerator.device, cast(Any, self.args)
        owner = torch.tensor([place[row] for row in self._rows], device=device)
        step, places = self._places(len(prompts))
        seed_step = step if self.mode == "train" else _EVALUATION
        self._generations.pop(self.mode, None)  # with the graph that it may still hold
        with self._whole(self.model_wrapped) as model, self.accelerator.autocast():
            rollout = self.sampler(
                model,
                questions,
                owner,
                self.schedule(step, places),
                sampling_seeds(args.seed, seed_step, places),
                bucketed=self.accelerator.num_processes == 1,
                shared=self._shares_prompts(),
            )
        mask = questions.attention_mask.bool()
        answered = torch.tensor([len(ids) for ids in rollout.completion_ids], device=device)
        latency = self.latency.ratio(mask.sum(1)[owner], rollout.layer_ratios, answered)
        by_rank = self._figures.add_rollouts({**rollout.figures(), "latency_ratio": latency})
        self._generations[self.mode] = Generation(rollout, self.state.global_step, by_rank=by_rank)
        ids = [row[valid].tolist() for row, valid in zip(questions.input_ids, mask, strict=True)]
        return {
            "prompt_ids": [ids[at] for at in owner.tolist()],
            "completion_ids": rollout.completion_ids,
            "logprobs": rollout.logps,
            "token_ratio": rollout.token_ratio.tolist(),
            "latency_ratio": latency.tolist(),
        }

    def _places(self, count: int) -> tuple[int, range]:
        """Steps finished before, and the places of this rank's rollouts in the step's batch.

        In order of the ranks: a group may begin on another one. Of several generations of one step
        the later ones follow the earlier ones, and so do the batches of an evaluation, which counts
        as before the first step.
        """
        ranks, step = self.accelerator.num_processes, self.state.global_step
        if self.mode == "train":
            earlier = self._generated[1] if self._generated[0] == step else 0
            self._generated = (step, earlier + 1)
            start = earlier * ranks * count
        else:
            step, start = 0, self._evaluated
            self._evaluated += ranks * count
        start += self.accelerator.process_index * count
        return step, range(start, start + count)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's; training's random numbers are afterwards where they were."""
        self._evaluated = 0
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return super().evaluation_loop(*args, **kwargs)

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
