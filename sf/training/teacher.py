"""A full-attention teacher: its hidden states, and a student's distance from them.

The teacher is the frozen base model. Only the last hidden state of each answer position is stored,
once per question; the logits of both models are computed block by block
(`sf.training.token_scores`).

Shapes: R answers, C answer length, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sf.attention.decoder_hooks import unwrapped
from sf.models import load_model
from sf.training.answers import AnswerBatch
from sf.training.logps import PolicyForward
from sf.training.parameters import RunParameters
from sf.training.sharding import is_sharded, shard_reference
from sf.training.token_scores import Head, in_blocks, replaced_head

__all__ = ["Distance", "Teacher", "compared"]


@dataclass(frozen=True)
class Teacher:
    """The base model under full attention.

    Attributes:
        model: frozen, or the student whose low-rank adapters are switched off.
        adapters: it is the student.
    """

    model: Any
    adapters: bool

    @classmethod
    def of(cls, p: RunParameters, base: Path, student: Any) -> Teacher:
        """The student without its adapters, or a copy of the base model, divided as it is.

        Args:
            p: parameters.
            base: folder of the base model.
            student: with its adapters and divided, if it is to be.
        """
        if p.train.lora:
            return cls(student, adapters=True)
        model = load_model(base, device=p.runtime.device).requires_grad_(False).eval()
        if is_sharded(student):
            shard_reference(model, student, p.runtime.device, p.runtime.dtype)
            # The head is used after the forward: the root's own weights stay whole.
            model.set_reshard_after_forward(False, recurse=False)
        return cls(model, adapters=False)

    @property
    def head(self) -> Any:
        """The language-model head."""
        return unwrapped(self.model).get_output_embeddings()

    @torch.no_grad()
    def hidden(self, answers: AnswerBatch, bucketed: bool) -> Tensor:
        """The hidden states that the answers' tokens are predicted from, (R, C, H).

        Args:
            answers: each question is run once, however many answers it has.
            bucketed: as in `PolicyForward`.
        """
        owner = answers.owner.tolist()
        first = [owner.index(question) for question in range(1 + max(owner))]
        forward = HiddenForward(
            model=self.model,
            bare=self.model,
            forced=replace(answers, retention_p=[1.0] * len(owner)),
            temperature=1.0,
            bucketed=bucketed,
        )
        rows = torch.tensor(first, device=answers.owner.device)
        ids, mask = answers.input_ids[rows], answers.attention_mask[rows]
        with self._base():
            hidden, _ = forward(rows, ids, mask, answers.width)
        return hidden[answers.owner]

    def _base(self) -> AbstractContextManager[Any]:
        return self.model.disable_adapter() if self.adapters else nullcontext()


class HiddenForward(PolicyForward):
    """Returns the last hidden states instead of log-probabilities."""

    def _head(self, rows: Tensor, inputs: dict[str, Any], width: int) -> tuple[Tensor, Tensor]:
        with replaced_head(self.bare, lambda head, own, hidden: hidden[:, :width]):
            hidden = self.model(**inputs, logits_to_keep=width + 1).logits
        return hidden, hidden


class Distance(NamedTuple):
    """Each (R, C) float32.

    Attributes:
        kl: KL(teacher || student) over the whole vocabulary, nats.
        hidden: squared distance of the hidden states over the teacher's squared norm.
        likeliest: 1 where the token is the student's likeliest one, else 0.
    """

    kl: Tensor
    hidden: Tensor
    likeliest: Tensor

    @classmethod
    def of(cls, output: Any) -> Distance:
        """Computed from the output of a student's forward pass under `compared`."""
        return cls(*output.logits.unbind(-1))


@contextmanager
def compared(student: Any, teacher: Teacher, hidden: Tensor, targets: Tensor) -> Iterator[None]:
    """A forward in which the head gives distances instead of logits; `Distance.of` reads them.

    Args:
        student: a causal language model, within PEFT or not, asked for the logits of at least C
            positions, of which the first C are compared.
        teacher: gives the head for `hidden`.
        hidden: (R, C, H), of `Teacher.hidden`.
        targets: (R, C) long, the tokens that follow the positions.
    """
    teacher_head: Head = teacher.head.forward

    def distances(head: Any, own: Head, given: Tensor) -> Tensor:
        block = _block(own, teacher_head)
        logits = 2 * head.weight.shape[0]
        return in_blocks(block, logits, given[:, : targets.shape[1]], hidden, targets)

    with replaced_head(student, distances):
        yield


def _block(own: Head, teacher_head: Head) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def block(given: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
        logps = torch.log_softmax(own(given).float(), dim=-1)
        with torch.no_grad():
            expected = torch.log_softmax(teacher_head(wanted).float(), dim=-1)
            norm = wanted.float().square().sum(-1)
        kl = (expected.exp() * (expected - logps)).sum(-1)
        apart = (given.float() - wanted.float()).square().sum(-1) / norm
        likeliest = (logps.argmax(-1) == tokens).float()
        return torch.stack([kl, apart, likeliest], dim=-1)

    return block
