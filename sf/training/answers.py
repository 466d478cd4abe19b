"""The dataset's answers as completions, each question at several `retention_p`.

Shapes: R answers, P padded prompt length, C answer length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sf.data.manifest import Row
from sf.data.prompts import Template, solution_text
from sf.errors import DataError
from sf.extras import extra
from sf.selection import Policy
from sf.training.dataset import question_order
from sf.training.encoding import Encoder, PromptBatch
from sf.training.retention_schedule import RetentionSchedule

with extra("train"):
    from datasets import Dataset

__all__ = ["AnswerBatch", "answer_ids", "answer_set", "gather_answers"]


def answer_set(rows: Sequence[Row], count: int, seed: int, group_size: int) -> Dataset:
    """The questions of `training_set` in the same order, `group_size` entries each.

    Args:
        rows: the train manifest.
        count: questions of the whole run.
        seed: of the order.
        group_size: entries of a question.

    Returns:
        columns `row` and `place`, the entry's position in the run.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("train manifest", None, "holds no rows", "prepare more data")
    order = [row for row in question_order(len(rows), count, seed) for _ in range(group_size)]
    return Dataset.from_dict({"row": order, "place": list(range(len(order)))})


def answer_ids(tokenizer: Any, row: Row, template: Template) -> list[int]:
    """The solution as the template asks for it (`solution_text`) and the end token."""
    text = solution_text(row, template)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, int(tokenizer.eos_token_id)]


@dataclass(frozen=True)
class AnswerBatch:
    """A micro-batch, as `sf.training.logps.PolicyForward` takes it.

    Attributes:
        prompts: the unique questions.
        owner: (R,) long, the question of each answer.
        retention_p: of each answer.
        schedule: gives the selection.
        input_ids: (R, P + C) long, prompts padded on the left, answers on the right.
        attention_mask: (R, P + C) long.
        width: C.
    """

    prompts: PromptBatch
    owner: torch.Tensor
    retention_p: list[float]
    schedule: RetentionSchedule
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    width: int

    @property
    def answer_mask(self) -> torch.Tensor:
        """(R, C) long, 1 on the answers' tokens, the end token included."""
        return self.attention_mask[:, -self.width :]

    def policy(self, rows: torch.Tensor, start: int) -> Policy:
        """The selection for `rows`; it does not depend on padding."""
        return self.schedule.policy([self.retention_p[at] for at in rows.tolist()])


def gather_answers(
    encoder: Encoder,
    tokenizer: Any,
    rows: Sequence[int],
    retention_p: Sequence[float],
    schedule: RetentionSchedule,
) -> AnswerBatch:
    """Encode each question once and append its answer.

    Args:
        encoder: row index -> question.
        tokenizer: of the model.
        rows: R row indices.
        retention_p: of each of the R answers.
        schedule: gives the selection.
    """
    unique = list(dict.fromkeys(rows))
    prompts = PromptBatch.collate([encoder(row) for row in unique], tokenizer.pad_token_id)
    device = prompts.input_ids.device
    replies = [answer_ids(tokenizer, encoder.rows[row], encoder.templates[row]) for row in unique]
    width = max(map(len, replies))
    shape = (len(unique), width)
    ids = torch.full(shape, tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    for at, reply in enumerate(replies):
        ids[at, : len(reply)] = torch.tensor(reply)
        mask[at, : len(reply)] = 1
    place = {row: at for at, row in enumerate(unique)}
    owner = torch.tensor([place[row] for row in rows], device=device)
    return AnswerBatch(
        prompts=prompts,
        owner=owner,
        retention_p=list(retention_p),
        schedule=schedule,
        input_ids=torch.cat([prompts.input_ids, ids.to(device)], dim=1)[owner],
        attention_mask=torch.cat([prompts.attention_mask, mask.to(device)], dim=1)[owner],
        width=width,
    )
