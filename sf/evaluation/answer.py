"""Greedy answers of a model on manifest rows, dense or under a sparse policy.

Rows are encoded with `sf.data.vision.encode`, as in training, so an evaluation and a rollout of
the same row see the same pixels and the same prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, TypeVar

import torch

from sf.attention import Trace, sparsify
from sf.attention.decoding import greedy
from sf.data.prompts import messages
from sf.data.rewards import correctness
from sf.data.vision import encode_parts
from sf.errors import ConfigError
from sf.evaluation.resumable_log import ResumableLog
from sf.progress import progress

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.data.prompts import Template
    from sf.sections import Vision

__all__ = [
    "Answer",
    "Encoded",
    "Judge",
    "Limits",
    "Setting",
    "answer_encoded",
    "answer_missing",
    "answer_rows",
    "answers_under",
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
    """Rows and their left-padded model inputs, reusable for any number of policies."""

    rows: tuple[Row, ...]
    inputs: Any  # transformers.BatchFeature

    @property
    def prompt_tokens(self) -> list[int]:
        """Valid tokens of each row, padding excluded."""
        return [int(n) for n in self.inputs["attention_mask"].sum(dim=1)]


class Answerable(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def data_type(self) -> str: ...


QuestionT = TypeVar("QuestionT", bound=Answerable)
Setting = tuple[str | float, ...]  # attention of a model, such as ("zipvl", 0.975)
Judge = Callable[["Row", str], float]


class Limits(TypedDict):
    """Decoding and scoring settings, for callers of `answers_under`.

    Attributes:
        batch: maximum batch size.
        max_new_tokens: generation limit.
        template: prompt template; by default "answer".
        cutoff: fractional score from which an answer counts as correct; by default 0.5.
    """

    batch: int
    max_new_tokens: int
    template: NotRequired[Template]
    cutoff: NotRequired[float]


def batches(rows: Sequence[QuestionT], batch: int) -> list[tuple[QuestionT, ...]]:
    """Rows in batches of one media type, images first; the order within a type is preserved.

    Args:
        rows: manifest rows, or other objects with a `data_type`.
        batch: maximum batch size.

    Raises:
        ConfigError: `batch` is below 1.
    """
    if batch < 1:
        raise ConfigError("batch", batch, "must be at least 1", "use 1 or more")
    groups = [[row for row in rows if row.data_type == kind] for kind in ("image", "video")]
    return [
        tuple(group[start : start + batch])
        for group in groups
        for start in range(0, len(group), batch)
    ]


def answer_missing(
    questions: Sequence[QuestionT],
    settings: Sequence[Setting],
    log: ResumableLog[Answer],
    begin: Callable[[tuple[QuestionT, ...]], Callable[[Setting], Sequence[Answer]]],
    *,
    batch: int,
    title: str,
) -> Iterator[tuple[Setting, QuestionT, Answer]]:
    """Answer every question under every setting, except those already in the log.

    An incomplete batch is answered as a whole: replies do not depend on when a run was killed.

    Args:
        questions: rows, or other objects with an id and a media type.
        settings: the model's attention settings, applied in order to each batch.
        log: answers of an earlier run of the same call, to which this one appends.
        begin: encodes a batch, once for all settings, and returns a function that answers it.
        batch: maximum batch size.
        title: of the progress.

    Yields:
        Setting, question and answer, by setting, then in the order of the questions.
    """
    missing = {
        setting: {each.id for each in questions if log.get((*setting, each.id)) is None}
        for setting in settings
    }
    total = len(settings) * len(questions)
    with progress(title, total, total - sum(map(len, missing.values()))) as counter:
        for members in batches(questions, batch):
            gaps = [s for s in settings if not missing[s].isdisjoint(each.id for each in members)]
            answer_under = begin(members) if gaps else None
            for setting in gaps:
                assert answer_under is not None
                fresh = [
                    answer for answer in answer_under(setting) if answer.id in missing[setting]
                ]
                log.add({(*setting, answer.id): answer for answer in fresh})
                note = " ".join(str(value) for value in setting)
                counter.advance(len(fresh), note=note)
    for setting in settings:
        for each in questions:
            answer = log.get((*setting, each.id))
            assert answer is not None
            yield setting, each, answer


def answers_under(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    vision: Vision,
    attentions: Mapping[Setting, Any],
    log: ResumableLog[Answer],
    *,
    title: str,
    batch: int,
    max_new_tokens: int,
    template: Template = "answer",
    cutoff: float = 0.5,
    judge: Judge | None = None,
) -> Iterator[tuple[Setting, Row, Answer]]:
    """`answer_missing` for manifest rows, each batch encoded once.

    Args:
        model: in evaluation mode, on its device.
        processor: its processor.
        rows: manifest rows.
        vision: pixel and frame bounds.
        attentions: by setting; `apply(model)` gives the context for answering.
        log: answers of an earlier run of the same call, to which this one appends.
        title: of the progress.
        batch, max_new_tokens, template, cutoff: see `Limits`.
        judge: see `answer_encoded`.
    """

    def begin(members: tuple[Row, ...]) -> Callable[[Setting], list[Answer]]:
        pieces = encode_rows(
            processor, members, vision, device=str(model.device), template=template
        )

        def answers(setting: Setting) -> list[Answer]:
            return [
                answer
                for encoded in pieces
                for answer in answer_encoded(
                    model,
                    processor,
                    encoded,
                    attentions[setting].apply(model),
                    decodes_densely=attentions[setting].decodes_densely,
                    max_new_tokens=max_new_tokens,
                    cutoff=cutoff,
                    judge=judge,
                )
            ]

        return answers

    return answer_missing(rows, list(attentions), log, begin, batch=batch, title=title)


def encode_rows(
    processor: Any,
    rows: Sequence[Row],
    vision: Vision,
    *,
    device: str = "cpu",
    template: Template = "answer",
) -> list[Encoded]:
    """A batch as model inputs: one batch, or for LLaVA one for each number of frames.

    Args:
        processor: of the model.
        rows: the batch.
        vision: pixel and frame bounds.
        device: of the tensors.
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
    decodes_densely: bool,
    max_new_tokens: int,
    cutoff: float = 0.5,
    judge: Judge | None = None,
) -> list[Answer]:
    """Greedy replies to one encoded batch.

    Args:
        model: a transformers model for image/video and text.
        processor: its processor.
        encoded: rows and inputs, on the model's device.
        context: the attention context: `sparsify(...)`, a method's `apply`, or `nullcontext()`.
        decodes_densely: of the method (`sf.baselines.method.Method`).
        max_new_tokens: generation limit.
        cutoff: fractional score from which an answer counts as correct.
        judge: 1.0 or 0.0 for a row and its reply; by default `sf.data.rewards.correctness`, which
            reads the content of answer tags.

    Returns:
        One answer per row, in order.
    """
    started = time.perf_counter()
    width = encoded.inputs["input_ids"].shape[1]
    output, trace = greedy(
        model,
        encoded.inputs,
        context,
        decodes_densely=decodes_densely,
        max_new_tokens=max_new_tokens,
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
            correct=judge(row, reply)
            if judge is not None
            else float(correctness(row.problem_type, reply, row.solution, cutoff=cutoff)),
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
        batch: maximum batch size.
        max_new_tokens: generation limit.
        template: prompt template of `sf.data.prompts`.
        cutoff: fractional score from which an answer counts as correct.

    Returns:
        One answer per row, in the order of `rows`.
    """
    training = model.training
    model.eval()
    answers: dict[str, Answer] = {}
    try:
        for members in batches(rows, batch):
            device = str(model.device)
            for encoded in encode_rows(
                processor, members, vision, device=device, template=template
            ):
                context = nullcontext() if policy is None else sparsify(model, policy)
                for answer in answer_encoded(
                    model, processor, encoded, context,
                    decodes_densely=True, max_new_tokens=max_new_tokens, cutoff=cutoff,
                ):  # fmt: skip
                    answers[answer.id] = answer
    finally:
        model.train(training)
    return [answers[row.id] for row in rows]
