"""Peak memory of a training step: the trainer's own code, on shapes.

One step runs, after an update with gradients of 0, which makes the optimiser's state.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import TrainerCallback

from sf.attention.cache import PrunedLayer
from sf.attention.decoding import DecodeCache, DecodeLoop
from sf.data.manifest import Row
from sf.models.tiny import build_processor
from sf.rehearsal.fake_ranks import one_of
from sf.rehearsal.live_memory import GATHERED, GRADIENTS, KV_CACHE, OPTIMISER, LiveMemory, Peaks
from sf.rehearsal.longest_inputs import longest_inputs, longest_modality
from sf.rehearsal.shape_run import shapes_only
from sf.rehearsal.shapes import ModelShape
from sf.rehearsal.weights import weight_counts
from sf.selection import Scores, Threshold, TopP
from sf.training.build_trainer import prepare_model, trainer_of, weight_of
from sf.training.encoding import Encoder
from sf.training.parameters import RunParameters
from sf.training.reference import reference_logps
from sf.training.sharding import shard
from sf.training.teacher import Teacher

__all__ = ["run_step", "training_peaks"]

SAMPLING, REFERENCE, FORWARD = "sampling", "reference", "forward"
BACKWARD, UPDATE, REST = "backward", "optimiser step", "rest of the step"


def training_peaks(
    shape: ModelShape, p: RunParameters, ranks: int = 1, token_ratio: float = 1.0
) -> Peaks:
    """Peak bytes by stage and category, on one GPU.

    The step is run as on a CPU, with PyTorch's operators. On a GPU the CUDA context, the workspaces
    of libraries and unused parts of the allocator's blocks come on top.

    Args:
        shape: of the base model.
        p: of the training.
        ranks: processes of the job.
        token_ratio: of the rollouts, see `stated_sizes`.
    """
    memory = LiveMemory(shape.config.get_text_config().vocab_size)
    with one_of(ranks), shapes_only(), memory.counting(), stated_sizes(token_ratio):
        run_step(shape, p, memory)
    if ranks > 1 and p.train.sharding == "none":
        # Data parallelism adds gradients up in buffers of the same size.
        for peak in memory.peaks.values():
            peak[GRADIENTS] += 4 * weight_counts(shape, p).trained
    return memory.peaks


def run_step(
    shape: ModelShape, p: RunParameters, memory: LiveMemory | None = None
) -> dict[str, float]:
    """One optimiser step on questions of the longest prompt, each with a solution of one word.

    Args:
        shape: of the base model; random weights, or none within `shapes_only`.
        p: of the training.
        memory: counts.

    Returns:
        What the trainer logged.
    """
    p = _one_step(p)
    memory = memory or LiveMemory(0)
    model, replacement = prepare_model(p, shape.new())
    if p.train.sharding == "fsdp":
        shard(model, p.runtime.device, p.runtime.dtype)
    processor = build_processor(shape.config.model_type, ["a b"] * 2)
    rows = [_row(at, longest_modality(p.vision)) for at in range(p.train.questions_per_step)]
    encoder = LongestPrompts(
        model, processor, rows, p.vision,
        templates=[p.answering.prompt_template] * len(rows), frozen_tower=not p.train.train_vision,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        references: list[Any] = []

        def another(*_: Any, **__: Any) -> Any:
            references.append(shape.new().requires_grad_(False).eval())
            return references[-1]

        for name in ("trl.trainer.grpo_trainer.create_model_from_path",
                     "sf.training.teacher.load_model"):  # fmt: skip
            stack.enter_context(patch(name, another))
        trainer: Any = trainer_of(
            p, Path(folder), model, replacement, processor, encoder, Path(folder), weight_of(p),
            callbacks=[_Watch(memory)],
        )  # fmt: skip
        for each in (model, *references):  # as they are divided
            memory.weights(each)
        trainer.args.save_strategy = "no"
        # Else it is wrapped for data parallelism, which asks the other ranks.
        trainer.is_distributed_loading_by_transformers = True
        stack.enter_context(_stages(trainer, memory))
        _few_passes(trainer)
        trainer.train()
        logged: dict[str, float] = trainer.state.log_history[0]
        return logged


class LongestPrompts(Encoder):
    """Questions of the longest prompt; no medium is read."""

    def _inputs(self, row: Row, template: Any) -> Any:
        return longest_inputs(self.model.config, self.vision)


def _row(at: int, modality: str) -> Row:
    return Row(
        id=str(at), problem="a", problem_type="OCR", data_type=modality, options=(),
        solution="<answer>a</answer>", answer="a", media=f"{at}", data_source="rehearsal",
    )  # fmt: skip


def _one_step(p: RunParameters) -> RunParameters:
    """The run's parameters for one step, in this process."""
    train = p.train.model_copy(update={"steps": 1, "log_every": 1, "collapse": None})
    runtime = p.runtime.model_copy(update={"device": "cpu"})
    return p.model_copy(update={"train": train, "runtime": runtime})


class _Watch(TrainerCallback):
    """Makes the optimiser's state before the step, and notes it."""

    def __init__(self, memory: LiveMemory) -> None:
        self.memory = memory

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        inner = optimizer.optimizer
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        # The first call with sharded gradients makes tensors of whole shapes, on shapes alone, to
        # find the sharding of its result.
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        inner.step()
        inner.zero_grad()
        every = (value for held in inner.state.values() for value in held.values())
        self.memory.note(OPTIMISER, every)
        self.memory.gradients(model)
        gc.collect()  # weights before they were divided, in cycles: a later step has none
        self.memory.peaks.clear()
        inner.step = self.memory.staged(UPDATE, inner.step)


@contextmanager
def _stages(trainer: Any, memory: LiveMemory) -> Iterator[None]:
    """Names the parts of the trainer's step."""
    vars(trainer)["compute_loss"] = memory.staged(FORWARD, trainer.compute_loss)
    vars(trainer.accelerator)["backward"] = memory.staged(BACKWARD, trainer.accelerator.backward)
    if hasattr(trainer, "_generate_and_score_completions"):
        own = trainer._generate_and_score_completions
        vars(trainer)["_generate_and_score_completions"] = memory.staged(SAMPLING, own)
    with (
        memory.stage(REST),
        patch(
            "sf.training.trainer.reference_logps",
            memory.staged(REFERENCE, reference_logps),
        ),
        patch.object(Teacher, "hidden", memory.staged(REFERENCE, Teacher.hidden)),
        noted_caches(memory),
        _gathering(memory),
    ):
        yield


@contextmanager
def _gathering(memory: LiveMemory) -> Iterator[None]:
    """Notes the weights that FSDP puts together for a layer's computation."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with memory.making(GATHERED):
                return function(*args, **kwargs)

        return run

    with (
        patch.object(FSDPParamGroup, "unshard", made(FSDPParamGroup.unshard)),
        patch.object(FSDPParamGroup, "wait_for_unshard", made(FSDPParamGroup.wait_for_unshard)),
    ):
        yield


@contextmanager
def noted_caches(memory: LiveMemory) -> Iterator[None]:
    """Notes keys and values."""
    from transformers.cache_utils import DynamicLayer

    def noted(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
        def run(cache: Any, *args: Any, **kwargs: Any) -> Any:
            result = function(cache, *args, **kwargs)
            for name in names:
                held = getattr(cache, name)
                memory.note(KV_CACHE, held if isinstance(held, list) else [held])
            return result

        return run

    pair = ("keys", "values")
    with (
        patch.object(DynamicLayer, "update", noted(DynamicLayer.update, *pair)),
        patch.object(PrunedLayer, "commit", noted(PrunedLayer.commit, *pair)),
        patch.object(DecodeCache, "_reserve", noted(DecodeCache._reserve, *pair)),
    ):
        yield


def _few_passes(trainer: Any) -> None:
    """Of a step's forward and backward passes run two and the last; the others are the second's."""
    own, passes, count = trainer.training_step, trainer.args.gradient_accumulation_steps, 0

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return own(*args, **kwargs) if count < 3 or count == passes else torch.tensor(0.0)

    vars(trainer)["training_step"] = run


@contextmanager
def stated_sizes(token_ratio: float = 1.0) -> Iterator[None]:
    """Replace what depends on weights by stated sizes.

    - Selection by mass or weight keeps `token_ratio` of each prompt, but never all: each row of a
      batch drops another small number of tokens.
    - Answers have the most tokens allowed; of their tokens the first and the last are computed.

    Args:
        token_ratio: in (0, 1].
    """

    def stated(keep: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(policy: Any, scores: Scores, layer: int) -> Tensor:
            keep(policy, scores, layer)  # for what it allocates
            dropped = 1 + torch.arange(len(scores.valid))
            count = (token_ratio * scores.lengths).ceil().long() - dropped
            return scores.best(count.clamp(min=1))

        return run

    with (
        patch.object(TopP, "keep", stated(TopP.keep)),
        patch.object(Threshold, "keep", stated(Threshold.keep)),
        patch.object(DecodeLoop, "_make", _last_token(DecodeLoop._make)),
    ):
        yield


def _last_token(make: Callable[..., None]) -> Callable[..., None]:
    """Of the tokens after the first, the last alone."""

    @torch.inference_mode()
    def run(loop: Any, tokens: int) -> None:
        step = loop.step
        skipped = step._limit - 1 - step.made
        skipped = skipped.clamp(min=0)
        step.made += skipped
        loop.cache.at += skipped
        if not loop.recorded:
            loop._prepare()
        make(loop, 1)

    return run
