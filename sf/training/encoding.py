"""Rows of a manifest as prompt tensors, each encoded once.

Shapes: U questions, R rollouts, P padded prompt length, l valid prompt tokens, V visual tokens,
H hidden size.

Each question is encoded alone, never in a batch: its vision features then do not depend
on the other questions, so a resumed run computes the same bits as an uninterrupted one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sf.data.prompts import Template, messages
from sf.data.vision import encode
from sf.errors import DataError
from sf.training.backbone import (
    MEDIA,
    as_position_ids,
    joined_features,
    prompt_positions,
    tower_output,
)

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.sections import Vision

__all__ = ["EncodedQuestion", "Encoder", "PromptBatch", "encoder_outputs"]


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """One encoded prompt.

    Attributes:
        input_ids: (l,) long.
        positions: (A, l) long; three axes of multimodal rope positions, or one.
        next_position: the position of the first completion token, on all axes.
        modality: "image" or "video".
        media: the processor's output for the medium, as `sf.training.backbone.MEDIA` names it;
            empty when `features` stand for it.
        features: (V, H), the frozen tower's output; None if the tower is trained.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    next_position: int
    modality: str
    media: dict[str, torch.Tensor]
    features: torch.Tensor | None

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors in bytes."""
        tensors = (self.input_ids, self.positions, self.features, *self.media.values())
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """A left-padded batch of questions.

    Attributes:
        questions: U of them.
        input_ids: (U, P) long.
        attention_mask: (U, P) long, 1 at valid tokens.
        positions: (A, U, P) long.
    """

    questions: tuple[EncodedQuestion, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def collate(cls, questions: Sequence[EncodedQuestion], pad_token_id: int) -> PromptBatch:
        """Pad questions on the left to the longest."""
        width = max(q.input_ids.numel() for q in questions)
        device = questions[0].input_ids.device
        shape = (len(questions), width)
        input_ids = torch.full(shape, pad_token_id, dtype=torch.long, device=device)
        mask = torch.zeros(shape, dtype=torch.long, device=device)
        axes = len(questions[0].positions)
        positions = torch.zeros((axes, *shape), dtype=torch.long, device=device)
        for at, question in enumerate(questions):
            start = width - question.input_ids.numel()
            input_ids[at, start:] = question.input_ids
            mask[at, start:] = 1
            positions[:, at, start:] = question.positions
        return cls(tuple(questions), input_ids, mask, positions)

    def positions_with(self, owner: torch.Tensor, completion_width: int) -> torch.Tensor:
        """Positions of rollouts, prompt and completion.

        Args:
            owner: (R,) long, the question of each rollout.
            completion_width: completion tokens after the prompt.

        Returns:
            (A, R, P + completion_width) long.
        """
        following = [self.questions[at].next_position for at in owner.tolist()]
        first = torch.tensor(following, device=owner.device)[:, None]
        tail = first + torch.arange(completion_width, device=owner.device)
        tails = tail.expand(len(self.positions), -1, -1)
        return torch.cat([self.positions[:, owner], tails], dim=2)

    def position_ids(
        self, owner: torch.Tensor, columns: slice, completion_width: int = 0
    ) -> torch.Tensor:
        """Columns of `positions_with`, as the model takes them.

        Returns:
            (R, columns) long, with three axes in front for multimodal rope positions.
        """
        return as_position_ids(self.positions_with(owner, completion_width)[:, :, columns])

    def features(self, model: Any) -> list[torch.Tensor]:
        """(V, H) per question: the stored features, or the model's own tower run on the pixels."""
        return [features_of(model, question) for question in self.questions]


def features_of(model: Any, question: EncodedQuestion) -> torch.Tensor:
    """(V, H), the visual tokens of a question as the language model sees them."""
    if question.features is not None:
        return question.features
    return tower_output(model, question.modality, question.media)


def encoder_outputs(
    model: Any, prompts: PromptBatch, features: Sequence[torch.Tensor], owner: torch.Tensor
) -> dict[str, Any]:
    """Visual tokens of rollouts as transformers' `mm_encoder_outputs`, which replace the pixels.

    Args:
        model: that will take them.
        prompts: the questions.
        features: (V, H) per question.
        owner: (R,) long, the question of each rollout.
    """
    groups: dict[str, list[torch.Tensor]] = {}
    for at in owner.tolist():
        groups.setdefault(prompts.questions[at].modality, []).append(features[at])
    return {kind: joined_features(model, kind, parts) for kind, parts in groups.items()}


class Encoder:
    """Encodes rows and keeps the latest ones.

    Args:
        model: gives the positions, and the tower while it is frozen.
        processor: of the model.
        rows: the training rows; questions are identified by their index.
        vision: pixel and frame bounds.
        templates: prompt template of each row.
        frozen_tower: keep features instead of pixels.
        cache_bytes: how much is kept; the least recently used question goes first.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        rows: Sequence[Row],
        vision: Vision,
        *,
        templates: Sequence[Template],
        frozen_tower: bool,
        cache_bytes: int = 2**30,
    ) -> None:
        self.model, self.processor, self.rows, self.vision = model, processor, rows, vision
        self.templates, self.frozen_tower, self.cache_bytes = templates, frozen_tower, cache_bytes
        self._kept: OrderedDict[int, EncodedQuestion] = OrderedDict()
        self._bytes = 0

    def __call__(self, index: int) -> EncodedQuestion:
        """The question of row `index`.

        Raises:
            DataError: the row does not have exactly one image or video.
        """
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        question = self._encode(self.rows[index], self.templates[index])
        self._kept[index] = question
        self._bytes += question.num_bytes
        while self._bytes > self.cache_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].num_bytes
        return question

    @torch.no_grad()
    def _encode(self, row: Row, template: Template) -> EncodedQuestion:
        inputs = self._inputs(row, template)
        modality = row.data_type
        media = {name: inputs[name] for name in MEDIA[modality] if name in inputs}
        # The last of them has one entry per medium.
        if not media or len([*media.values()][-1]) != 1:
            raise DataError(
                f"row {row.id}", None, f"must hold exactly one {modality}", "prepare the data again"
            )
        positions, following = prompt_positions(self.model, inputs)
        features = tower_output(self.model, modality, media) if self.frozen_tower else None
        return EncodedQuestion(
            input_ids=inputs["input_ids"][0],
            positions=positions,
            next_position=following,
            modality=modality,
            media={} if self.frozen_tower else media,
            features=features,
        )

    def _inputs(self, row: Row, template: Template) -> Any:
        """The processor's output for one row, on the model's device."""
        return encode(self.processor, [messages(row, template)], self.vision, self.model.device)
