"""Lower bounds on the memory of a training step or a batch of answers.

The bounds count weights, gradients, optimiser and reference (`sf.training.cost.RankMemory`), keys
and values, and the layers' inputs that a backward pass keeps even with gradient checkpointing.
Everything else needs additional memory, so a job that does not fit here does not fit at all.

Prompts are the longest that the pixel and frame bounds allow, for LLaVA the longest video; answers
of sampled objectives have `max_completion_tokens`, those of the dataset count as empty.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from sf.attention.video_form import video_form
from sf.data.budget import SHORT_QUESTION, longest_prompt
from sf.rehearsal.live_memory import FIXED, GATHERED, KV_CACHE, WEIGHTS
from sf.rehearsal.shapes import ModelShape
from sf.rehearsal.weights import weight_counts
from sf.sections import Runtime, Vision
from sf.training.parameters import RunParameters
from sf.training.settings import micro_batch
from sf.training.trainer_config import Grpo

__all__ = ["HELD", "INPUTS", "Need", "answering", "training"]

HELD = "weights, gradients, optimiser, reference"
INPUTS = "inputs of layers"
LEAST_RATIO = 0.25
"""Share of a prompt's tokens in the cache of a sampled answer: published after training."""


@dataclass(frozen=True)
class Need:
    """The memory of one part of a job on one GPU (or, with `device: cpu`, in its process).

    Attributes:
        part: name for a table.
        bytes: by category.
        batch: the parameter that sets its batch size.
    """

    part: str
    bytes: Counter[str]
    batch: str

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    @property
    def fixed(self) -> int:
        """The bytes that are independent of the batch size."""
        return sum(self.bytes[name] for name in (HELD, *FIXED))


def _entry(shape: ModelShape, element: int) -> int:
    """Bytes of a token's keys and values in all layers."""
    text: Any = shape.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * head * element)


def _element(runtime: Runtime) -> int:
    return int(getattr(torch, runtime.dtype).itemsize)


def _longest(shape: ModelShape, vision: Vision) -> int:
    """Tokens of the longest prompt: LLaVA resizes frames to its tower's size."""
    config: Any = shape.config
    if "llava" not in config.model_type:
        return longest_prompt(vision)
    tower = config.vision_config
    side = tower.image_size // tower.patch_size
    return video_form(config).num_tokens(vision.video_max_frames, side) + SHORT_QUESTION


def training(shape: ModelShape, p: RunParameters, ranks: int) -> list[Need]:
    """The parts of a training step of one of its processes.

    Args:
        shape: of the base model.
        p: of the training.
        ranks: processes of the job.

    Raises:
        ConfigError: the rollouts cannot be divided over the ranks.
    """
    memory, element = weight_counts(shape, p, ranks).memory, _element(p.runtime)
    text: Any = shape.config.get_text_config()
    prompt, needs = _longest(shape, p.vision), list[Need]()
    size, forwards = micro_batch(p, ranks)
    answer = 0
    if isinstance(p.objective, Grpo):
        answer = p.answering.max_completion_tokens
        entries = size * forwards * (int(LEAST_RATIO * prompt) + answer)
        sampling = Counter({HELD: memory.held, GATHERED: memory.gathered})
        sampling[KV_CACHE] = entries * _entry(shape, element)
        needs.append(Need("sampling", sampling, "train.questions_per_step"))
    kept = size * (prompt + answer) * text.hidden_size * element * text.num_hidden_layers
    learning = Counter({HELD: memory.held, INPUTS: kept})
    return [*needs, Need("forward and backward", learning, "train.rollouts_per_forward")]


def answering(
    shape: ModelShape, runtime: Runtime, vision: Vision, batch: int, new_tokens: int, name: str
) -> Need:
    """A batch of the longest prompts, answered with full attention.

    Args:
        shape: of the model.
        runtime: its type.
        vision: pixel and frame bounds.
        batch: number of questions answered at once.
        new_tokens: length of the longest reply.
        name: of the stage that has this `batch`.
    """
    element = _element(runtime)
    entries = batch * (_longest(shape, vision) + new_tokens)
    held = {WEIGHTS: element * shape.num_parameters, KV_CACHE: entries * _entry(shape, element)}
    return Need("a batch, full attention", Counter(held), f"{name}.batch")
