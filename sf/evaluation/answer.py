"""Greedy answers of a model on manifest rows, dense or under a sparse policy.

Rows become tensors through `sf.data.vision.encode`, the path that training uses too, so a figure
on a calibration row and a rollout on the same row see the same pixels and the same prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from sf.attention import Trace, sparsify
from sf.data.prompts import messages
from sf.data.rewards import correctness
from sf.data.vision import encode_parts
from sf.errors import ConfigError

if TYPE_CHECKING:
    from sf.config import Vision
    from sf.data.manifest import Row
    from sf.data.prompts import Template

__all__ = [
    "Answer",
    "AnswerLog",
    "Encoded",
    "answer_encoded",
    "answer_rows",
    "batches",
    "encode_rows",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """One greedy reply.

    Attributes:
        id: the row's id.
        data_type: "image" or "video".
        problem_type: one of Video-R1's five.
        reply: decoded completion without special tokens.
        correct: 1.0 or 0.0.
        token_ratio: kept / prompt tokens, mean over layers, in (0, 1]; 1 for dense.
        layer_ratios: the same per layer, first layer first.
        prompt_tokens: valid prompt tokens, visual ones included.
        seconds: wall time of this row's share of its batch.
    """

    id: str
    data_type: str
    problem_type: str
    reply: str
    correct: float
    token_ratio: float
    layer_ratios: tuple[float, ...]
    prompt_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows and the left-padded model inputs made of them; usable for any number of policies."""

    rows: tuple[Row, ...]
    inputs: Any  # transformers.BatchFeature

    @property
    def prompt_tokens(self) -> list[int]:
        """Valid tokens of each row, padding excluded."""
        return [int(n) for n in self.inputs["attention_mask"].sum(dim=1)]


class AnswerLog:
    """Answers in a JSONL file, one line each under a key, so that a killed run goes on.

    A line that was cut by a kill is dropped when the file is opened: it is always the last one.

    Args:
        path: the file; created with its first line.

    Raises:
        ConfigError: a line other than the last is not an answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[tuple[str, str], Answer] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = 0
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                key = record.pop("key")
                record["layer_ratios"] = tuple(record["layer_ratios"])
                answer = Answer(**record)
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise ConfigError(
                    f"{self.path.name} line {number}",
                    line[:80],
                    f"is not an answer ({error})",
                    "delete the file to answer again",
                ) from error
            if not line.endswith("\n"):
                break
            self._answers[key, answer.id] = answer
            whole += len(line.encode())
        if whole < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def get(self, key: str, row_id: str) -> Answer | None:
        """The answer to a row under a key, if it is there."""
        return self._answers.get((key, row_id))

    def add(self, key: str, answers: Iterable[Answer]) -> None:
        """Append answers; they are on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for answer in answers:
                self._answers[key, answer.id] = answer
                file.write(json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n")


class _Asked(Protocol):
    @property
    def data_type(self) -> str: ...


Asked = TypeVar("Asked", bound=_Asked)


def batches(rows: Sequence[Asked], batch: int) -> list[tuple[Asked, ...]]:
    """Rows in batches of one media type, images first, the order within a type kept.

    Args:
        rows: manifest rows, or what else has a `data_type`.
        batch: rows in a batch at most.

    Raises:
        ConfigError: `batch` is below 1.
    """
    if batch < 1:
        raise ConfigError("batch", batch, "must be at least 1", "give a positive batch size")
    groups = [[row for row in rows if row.data_type == kind] for kind in ("image", "video")]
    return [
        tuple(group[start : start + batch])
        for group in groups
        for start in range(0, len(group), batch)
    ]


def encode_rows(
    processor: Any,
    rows: Sequence[Row],
    vision: Vision,
    *,
    device: str = "cpu",
    template: Template = "answer",
) -> list[Encoded]:
    """A batch as model inputs: in one piece, or for LLaVA one for each number of frames.

    Args:
        processor: of the model.
        rows: the batch.
        vision: pixel and frame bounds.
        device: where the tensors go.
        template: prompt template of `sf.data.prompts`.
    """
    talks = [messages(row, template) for row in rows]
    parts = encode_parts(processor, talks, vision, device)
    return [Encoded(tuple(rows[i] for i in members), inputs) for members, inputs in parts]


@torch.inference_mode()
def answer_encoded(
    model: Any,
    processor: Any,
    encoded: Encoded,
    context: AbstractContextManager[Trace | None],
    *,
    max_new_tokens: int,
    cutoff: float = 0.5,
) -> list[Answer]:
    """Greedy replies to one encoded batch.

    Args:
        model: a transformers model for image/video and text.
        processor: its processor.
        encoded: rows and inputs, on the model's device.
        context: what the model runs under: `sparsify(...)`, a method's `apply`, or `nullcontext()`.
        max_new_tokens: generation limit.
        cutoff: share from which a fractional score counts as correct.

    Returns:
        One answer per row, in order.
    """
    started = time.perf_counter()
    width = encoded.inputs["input_ids"].shape[1]
    with context as trace:
        output = model.generate(
            **encoded.inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )
    replies = processor.batch_decode(output[:, width:], skip_special_tokens=True)
    seconds = (time.perf_counter() - started) / len(encoded.rows)
    layers = model.config.get_text_config().num_hidden_layers
    if trace is None:
        ratios = torch.ones(layers, len(encoded.rows))
    else:
        ratios = trace.layer_ratios.float().cpu()
    return [
        Answer(
            id=row.id,
            data_type=row.data_type,
            problem_type=row.problem_type,
            reply=reply.strip(),
            correct=float(correctness(row.problem_type, reply, row.solution, cutoff=cutoff)),
            token_ratio=float(ratios[:, at].mean()),
            layer_ratios=tuple(float(ratio) for ratio in ratios[:, at]),
            prompt_tokens=tokens,
            seconds=seconds,
        )
        for at, (row, reply, tokens) in enumerate(
            zip(encoded.rows, replies, encoded.prompt_tokens, strict=True)
        )
    ]


def answer_rows(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    vision: Vision,
    policy: Any | None = None,
    batch: int = 16,
    max_new_tokens: int = 16,
    *,
    template: Template = "answer",
    cutoff: float = 0.5,
) -> list[Answer]:
    """Greedy replies to manifest rows under one policy.

    Args:
        model: the model; put into evaluation mode for the call.
        processor: its processor.
        rows: manifest rows.
        vision: pixel and frame bounds.
        policy: sparse policy, or None for the dense model.
        batch: rows in a batch at most.
        max_new_tokens: generation limit.
        template: prompt template of `sf.data.prompts`.
        cutoff: share from which a fractional score counts as correct.

    Returns:
        One answer per row, in the order of `rows`.
    """
    training = model.training
    model.eval()
    found: dict[str, Answer] = {}
    try:
        for part in batches(rows, batch):
            device = str(model.device)
            for encoded in encode_rows(processor, part, vision, device=device, template=template):
                context = nullcontext() if policy is None else sparsify(model, policy)
                for answer in answer_encoded(
                    model, processor, encoded, context, max_new_tokens=max_new_tokens, cutoff=cutoff
                ):
                    found[answer.id] = answer
    finally:
        model.train(training)
    return [found[row.id] for row in rows]
