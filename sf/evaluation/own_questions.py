"""A checkpoint on a user's questions: full attention and other methods in one table.

Every row is encoded once and answered under every setting, full attention first, so differences
are paired by question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
from pydantic import Field

from sf.baselines.registry import TRAINED, WITH_RETENTION_P, method_class
from sf.errors import ConfigError
from sf.evaluation.intervals import bootstrap_clusters, bootstrap_mean, wilson
from sf.fields import Section
from sf.tables import table_of

if TYPE_CHECKING:
    from sf.baselines.method import Method
    from sf.data.manifest import Row
    from sf.evaluation.answer import Answer, Limits
    from sf.evaluation.resumable_log import ResumableLog
    from sf.sections import Vision

__all__ = ["FULL", "AttentionSetting", "answer_table", "attentions_of", "settings_of", "summary"]

FULL = "full"


class AttentionSetting(Section):
    """A method at a value of its hyperparameter."""

    method: str = Field(description="a key of sf.baselines.METHODS, or trained")
    value: float | None = Field(
        None, description="of the method's hyperparameter; by default the method's own"
    )

    @property
    def name(self) -> str:
        """As in tables: "zipvl 0.975"."""
        return self.method if self.value is None else f"{self.method} {self.value:g}"


def settings_of(
    source: Any, methods: Sequence[str] = (), retention_p: Sequence[float] = ()
) -> list[AttentionSetting]:
    """Full attention, then each method: at every `retention_p` if it has one, else at its default.

    Args:
        source: a checkpoint's folder, or its configuration.
        methods: names, or NAME=VALUE; if empty, the method that the checkpoint was trained with,
            or ZipVL for a base model.
        retention_p: if empty, the methods' own values.

    Raises:
        ConfigError: an unknown method, or a value out of range.
        UnsupportedModelError: a method does not run on the checkpoint.
    """
    from sf.baselines import resolve

    settings = [AttentionSetting(method=FULL, value=None)]
    for word in methods or [TRAINED]:
        name, _, text = word.partition("=")
        name = resolve(source).name if name == TRAINED else name
        values: list[float | None] = [_number(name, text)] if text else [None]
        if not text and name in WITH_RETENTION_P and retention_p:
            values = list(retention_p)
        elif not text and method_class(name).hyperparameter is not None:
            values = [resolve(source, name).value]
        settings += [AttentionSetting(method=name, value=value) for value in values]
    unique = list({setting.name: setting for setting in settings}.values())
    if retention_p and not any(setting.method in WITH_RETENTION_P for setting in unique):
        rule = f"none of the methods has a threshold p; {', '.join(WITH_RETENTION_P)} do"
        raise ConfigError(
            "retention_p", list(retention_p), rule, "leave it out, or add such a method"
        )
    attentions_of(source, unique)
    return unique


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError("methods", f"{name}={text}", "NAME=VALUE needs a number") from None


def attentions_of(
    source: Any, settings: Sequence[AttentionSetting]
) -> dict[tuple[str | float, ...], Method]:
    """The attention methods by setting.

    Raises:
        ConfigError, UnsupportedModelError: see `sf.baselines.resolve`.
    """
    from sf.baselines import resolve, resolve_point

    built: dict[tuple[str | float, ...], Method] = {}
    for setting in settings:
        name, value = setting.method, setting.value
        if value is not None and name in WITH_RETENTION_P:
            built[name, value] = resolve_point(source, value, name)
        else:
            built[(name,) if value is None else (name, value)] = resolve(source, name, value)
    return built


def answer_table(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    vision: Vision,
    settings: Sequence[AttentionSetting],
    log: ResumableLog[Answer],
    **limits: Unpack[Limits],
) -> pd.DataFrame:
    """Answer every row under every setting, except those already in the log.

    Args:
        model: the checkpoint, on its device.
        processor: its processor.
        rows: the questions.
        vision: pixel and frame bounds.
        settings: from `settings_of`.
        log: answers of an earlier run of the same call, to which this one appends.
        **limits: decoding and scoring settings; `cutoff` is that of `sf.evaluation.replies.judged`.

    Returns:
        One line per setting and row: setting, method, value, question, answer, media, and the
        fields of `Answer`.
    """
    from sf.evaluation.answer import answers_under
    from sf.evaluation.replies import judged, read_reply

    model.eval()
    cutoff = limits.get("cutoff", 0.5)
    answered = answers_under(
        model,
        processor,
        rows,
        vision,
        attentions_of(model, settings),
        log,
        title="answers",
        judge=lambda row, reply: judged(row, reply, cutoff),
        **limits,
    )
    return table_of(
        {
            "setting": " ".join(f"{part:g}" if isinstance(part, float) else part for part in key),
            "method": key[0],
            "value": key[1] if len(key) > 1 else None,
            "question": row.problem,
            "answer": row.answer,
            "media": row.media,
            "read_as": read_reply(row, answer.reply),
            **asdict(answer),
        }
        for key, row, answer in answered
    )


def summary(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One line per setting, full attention first.

    Args:
        answers: from `answer_table`.
        seed: of the bootstrap.

    Returns:
        Columns setting, method, value, questions, accuracy with its Wilson interval (low, high),
        difference to full attention with its paired bootstrap interval over media
        (difference_low, difference_high), token_ratio with its bootstrap interval over questions
        (ratio_low, ratio_high), prompt_tokens and seconds (means per question; seconds without
        loading and encoding), changed (share of the questions whose judgement differs from full
        attention's).
    """
    groups = dict(list(answers.groupby("setting", sort=False)))
    full = groups[FULL].set_index("id")["correct"]
    lines = []
    for name, group in groups.items():
        low, high = wilson(group["correct"].sum(), len(group))
        effect = group.set_index("id")["correct"] - full
        media = group.set_index("id")["media"].loc[effect.index].tolist()
        effect_low, effect_high = bootstrap_clusters(effect.to_numpy(), media, seed)
        ratio_low, ratio_high = bootstrap_mean(group["token_ratio"], seed)
        lines.append(
            {
                "setting": name,
                "method": group["method"].iloc[0],
                "value": group["value"].iloc[0],
                "questions": len(group),
                "accuracy": group["correct"].mean(),
                "low": low,
                "high": high,
                "difference": effect.mean(),
                "difference_low": 0.0 if name == FULL else effect_low,
                "difference_high": 0.0 if name == FULL else effect_high,
                "token_ratio": group["token_ratio"].mean(),
                "ratio_low": ratio_low,
                "ratio_high": ratio_high,
                "prompt_tokens": group["prompt_tokens"].mean(),
                "seconds": group["seconds"].mean(),
                "changed": (effect != 0).mean(),
            }
        )
    return pd.DataFrame(lines)
