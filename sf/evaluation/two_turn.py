"""A second question about the same media, after the first turn pruned the KV cache.

This goes beyond the paper: pruning keeps what the first question needed. Pairs of manifest rows
about the same image or video form one conversation; the reply to the first question is always the
correct one, so that the arms differ only in attention and cache:

- dense: full attention, the whole cache is kept;
- whole: the first prompt is prefilled under the selection, every token's K and V are kept;
- pruned: the first prompt is prefilled under the selection, only the kept tokens' K and V are kept
  (as in sparse inference);
- anew: the whole conversation is prefilled again under the selection, as a new prompt.

The selection is the one used in training, or top-p for a base model.

Replies are greedy (`sf.evaluation.two_turn_decoding`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sf.baselines import resolve_point
from sf.baselines.selectors import Selection
from sf.data.prompts import messages, question_text
from sf.data.rewards import correctness
from sf.data.vision import encode_parts
from sf.errors import UnsupportedModelError
from sf.evaluation.answer import Answer, Setting, answer_missing
from sf.evaluation.intervals import bootstrap_clusters
from sf.evaluation.resumable_log import ResumableLog
from sf.evaluation.two_turn_decoding import More, greedy, more_of
from sf.tables import table_of

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.data.prompts import Template
    from sf.sections import Vision
    from sf.selection import Policy

__all__ = ["ARMS", "Pair", "pairs_of", "two_turn_answers", "two_turn_table"]

ARMS = ("dense", "whole", "pruned", "anew")


@dataclass(frozen=True)
class Pair:
    """Two questions about one image or video; `id` and `data_type` are the second one's."""

    first: Row
    second: Row

    @property
    def id(self) -> str:
        """The second row's id."""
        return self.second.id

    @property
    def data_type(self) -> str:
        """ "image" or "video"."""
        return self.second.data_type


def pairs_of(rows: Sequence[Row], most: int) -> list[Pair]:
    """Disjoint pairs of neighbouring rows about the same media, in the order of the rows.

    Args:
        rows: of a manifest.
        most: maximum number of pairs.
    """
    by_media: dict[str, list[Row]] = {}
    for row in rows:
        by_media.setdefault(str(row.media_path), []).append(row)
    pairs = [
        Pair(first, second)
        for group in by_media.values()
        for first, second in zip(group[::2], group[1::2], strict=False)
    ]
    return pairs[:most]


def _talk(pair: Pair, template: Template) -> list[dict[str, Any]]:
    reply = {"type": "text", "text": pair.first.solution}
    question = {"type": "text", "text": question_text(pair.second, template)}
    return [
        *messages(pair.first, template),
        {"role": "assistant", "content": [reply]},
        {"role": "user", "content": [question]},
    ]


_Read = tuple[list[int], Any, More | None]  # pairs' indices, prompt, its continuation


def _read(
    processor: Any,
    pairs: Sequence[Pair],
    vision: Vision,
    template: Template,
    device: str,
    anew: bool,
) -> list[_Read]:
    """The first prompts and their continuations; or whole conversations as prompts."""
    talks = [_talk(pair, template) for pair in pairs]
    if anew:
        return [(*part, None) for part in encode_parts(processor, talks, vision, device)]
    prompts: list[_Read] = []
    for members, inputs in encode_parts(processor, [talk[:1] for talk in talks], vision, device):
        replies = [pairs[i].first.solution for i in members]
        more = more_of(processor, [talks[i] for i in members], replies, device)
        prompts.append((members, inputs, more))
    return prompts


def _answers(
    model: Any,
    processor: Any,
    pairs: Sequence[Pair],
    read: Sequence[_Read],
    policy: Policy | None,
    limit: int,
    cutoff: float,
) -> list[Answer]:
    started = time.perf_counter()
    answers: dict[int, Answer] = {}
    for members, inputs, more in read:
        completions, ratios = greedy(model, inputs, more, policy, limit)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        for at, index in enumerate(members):
            row = pairs[index].second
            reply = processor.decode(completions[at], skip_special_tokens=True)
            answers[index] = Answer(
                id=row.id,
                data_type=row.data_type,
                problem_type=row.problem_type,
                reply=reply.strip(),
                correct=float(correctness(row.problem_type, reply, row.solution, cutoff=cutoff)),
                token_ratio=float(ratios[:, at].mean()),
                layer_ratios=tuple(ratios[:, at].tolist()),
                prompt_tokens=int(lengths[at]),
                seconds=0.0,
            )
    seconds = (time.perf_counter() - started) / len(pairs)
    return [replace(answers[index], seconds=seconds) for index in range(len(pairs))]


def two_turn_answers(
    model: Any,
    processor: Any,
    pairs: Sequence[Pair],
    vision: Vision,
    grid: Sequence[float],
    log: ResumableLog[Answer],
    *,
    batch: int,
    max_new_tokens: int,
    template: Template = "answer",
    cutoff: float = 0.5,
) -> pd.DataFrame:
    """Answer the second question of every pair in every arm, except those already in the log.

    Args:
        model: the checkpoint, on its device.
        processor: its processor.
        pairs: from `pairs_of`.
        vision: pixel and frame bounds.
        grid: points of the checkpoint's curve (`sf.baselines.resolve_point`).
        log: answers of an earlier run of the same call, to which this one appends.
        batch: maximum batch size, in pairs.
        max_new_tokens: generation limit.
        template: prompt template.
        cutoff: fractional score from which an answer counts as correct.

    Returns:
        One row per arm, retention_p and pair: columns arm, retention_p (1 for dense), media (path),
        and the fields of `Answer` for the second question; `token_ratio` is that of the prompt
        read under the policy.

    Raises:
        UnsupportedModelError: the chat template rewrites an earlier turn, or the checkpoint was
            trained with an attention that prunes no cache.
    """
    model.eval()
    points = [float(retention_p) for retention_p in grid]
    selections = {point: _selection(model, point) for point in points} if pairs else {}
    runs: list[Setting] = [("dense", 1.0), *((arm, point) for point in points for arm in ARMS[1:])]

    def begin(members: tuple[Pair, ...]) -> Callable[[Setting], list[Answer]]:
        device = str(model.device)
        read = functools.cache(partial(_read, processor, members, vision, template, device))

        def answers(setting: Setting) -> list[Answer]:
            arm, retention_p = setting
            policy = None
            if arm != "dense":
                policy = selections[float(retention_p)].policy(whole_kv=arm == "whole")
            prompts = read(arm == "anew")
            return _answers(model, processor, members, prompts, policy, max_new_tokens, cutoff)

        return answers

    answered = answer_missing(pairs, runs, log, begin, batch=batch, title="second turns")
    return table_of(
        {
            "arm": arm,
            "retention_p": retention_p,
            "media": str(pair.second.media_path),
            **asdict(answer),
        }
        for (arm, retention_p), pair, answer in answered
    )


def _selection(model: Any, retention_p: float) -> Selection:
    attention = resolve_point(model, retention_p)
    if not isinstance(attention, Selection):
        rule = "it keeps the whole cache, so a second question misses nothing"
        remedy = "leave out the two-turn check: calibrate.two_turn.pairs 0"
        raise UnsupportedModelError("method", attention.name, rule, remedy)
    return attention


def two_turn_table(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Accuracy of the second question per retention_p and arm, and the cost of pruning.

    Args:
        answers: from `two_turn_answers`.
        seed: of the bootstrap.

    Returns:
        Per retention_p: retention_p, pairs, media (images and videos), token_ratio (of the first
        prompt), dense, whole, pruned, anew (accuracies), and of pruned - whole and pruned - dense
        the difference with its paired 95 % interval, bootstrapped over media: cost, cost_low,
        cost_high, gap, gap_low, gap_high. Empty without pairs.
    """
    names = ["retention_p", "pairs", "media", "token_ratio", *ARMS]
    names += [f"{name}{end}" for name in ("cost", "gap") for end in ("", "_low", "_high")]
    if answers.empty:
        return pd.DataFrame(columns=names)
    runs = {run: part.set_index("id") for run, part in answers.groupby(["arm", "retention_p"])}
    dense = runs["dense", 1.0]["correct"]
    media = answers.drop_duplicates("id").set_index("id")["media"].loc[dense.index].to_numpy()
    lines = []
    for retention_p in sorted(answers.loc[answers["arm"] != "dense", "retention_p"].unique()):
        arms = {"dense": dense} | {
            arm: runs[arm, retention_p]["correct"].loc[dense.index] for arm in ARMS[1:]
        }
        line: dict[str, object] = {
            "retention_p": retention_p,
            "pairs": len(dense),
            "media": len(set(media)),
            "token_ratio": runs["pruned", retention_p]["token_ratio"].mean(),
            **{arm: values.mean() for arm, values in arms.items()},
        }
        for name, other in (("cost", "whole"), ("gap", "dense")):
            difference = (arms["pruned"] - arms[other]).to_numpy(np.float64)
            line[name] = difference.mean()
            line[f"{name}_low"], line[f"{name}_high"] = bootstrap_clusters(difference, media, seed)
        lines.append(line)
    return pd.DataFrame(lines, columns=names)
