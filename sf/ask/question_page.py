"""The page of `sf evaluate`: accuracy against kept tokens, and replies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
from matplotlib.figure import Figure

from sf.evaluation.benchmarks import RIGHT
from sf.evaluation.own_questions import FULL, AttentionSetting, attentions_of
from sf.plotting import figure, in_style, look, marks, note, percent, save, write_figure
from sf.report.benchmark_tables import Cell
from sf.report.page import Page, Picture, Section, Table, write_page

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.data.prompts import Template
    from sf.sections import Vision

__all__ = ["examples", "summary_table", "write_question_page"]


class Evaluated(Protocol):
    """Parameters of an evaluation on own questions (`sf.stages.questions`)."""

    model: str
    questions: Path
    media: Path
    settings: list[AttentionSetting]
    pictures: int
    max_new_tokens: int

    @property
    def prompt_template(self) -> Template: ...
    @property
    def vision(self) -> Vision: ...


_RULE = (
    "Failures are the first questions that full attention answers correctly and the method does "
    "not; successes are the first that both answer correctly. Each makes up half of the pictures, "
    "or more if there are too few of the other. If both are too few, the first questions that full "
    "attention answers wrong follow."
)
MOST_SAMPLES = 200
"""Largest number of questions on the page; tables/answers.csv has all of them."""


def write_question_page(
    folder: Path,
    p: Evaluated,
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    answers: pd.DataFrame,
    table: pd.DataFrame,
) -> None:
    """Write `index.html`, `report.md` and their figures.

    Args:
        folder: of the result.
        p: parameters of the stage.
        model, processor: the checkpoint, for the drawings of kept tokens.
        rows: the questions.
        answers: `sf.evaluation.own_questions.answer_table`.
        table: `sf.evaluation.own_questions.summary`.
    """
    where = f"{p.model}, {len(rows)} questions of {p.questions.name}"
    save(_tradeoff(table, where), folder / "figures", "accuracy")
    order = _changed_first(answers)
    pictures = _kept_pictures(folder, p, model, processor, rows, answers)
    shown = order[:MOST_SAMPLES]
    about = [
        "A difference is paired, question by question; its interval resamples images and videos. "
        "The token ratio is the share of the prompt's tokens that a layer attends to and keeps in "
        "its cache, averaged over layers. Seconds are wall time per question, without loading the "
        "model and the media.",
    ]
    sections = [
        Section(
            "Result",
            text=about,
            tables=[summary_table(table)],
            pictures=[Picture("accuracy", f"Accuracy against kept tokens: {where}.")],
        ),
        Section(
            "Questions",
            text=[
                f"{len(shown)} of {len(order)} questions, starting with those on which the methods "
                "disagree; all are in tables/answers.csv."
            ],
            tables=[_samples(answers, shown)],
        ),
    ]
    if pictures:
        sections.append(Section("Kept tokens", text=[_RULE], pictures=pictures))
    title = f"{p.model} on {p.questions.name}"
    write_page(Page(title, [f"{where}; media below {p.media}."], sections), folder)


def summary_table(table: pd.DataFrame) -> Table:
    """The metrics of each setting as table cells."""
    rows = []
    for line in table.to_dict("records"):
        full = line["setting"] == FULL
        rows.append(
            [
                Cell(str(line["setting"])),
                Cell(f"{line['questions']}"),
                Cell(f"{100 * line['accuracy']:.1f}", _between(line, "low", "high")),
                Cell("reference")
                if full
                else Cell(
                    f"{100 * line['difference']:+.1f}",
                    _between(line, "difference_low", "difference_high", "+"),
                ),
                Cell(f"{100 * line['token_ratio']:.1f}", _between(line, "ratio_low", "ratio_high")),
                Cell(f"{line['seconds']:.3g}"),
            ]
        )
    header = ["method", "questions", "accuracy (%)", "difference to full (points)"]
    header += ["token ratio (%)", "seconds per question"]
    return Table("overview", "Each method on the same questions", header, rows)


def _between(line: dict[Any, Any], low: str, high: str, sign: str = "") -> str:
    if pd.isna(line[low]) or pd.isna(line[high]):
        return ""
    return f"{100 * line[low]:{sign}.1f} to {100 * line[high]:{sign}.1f}"


@in_style
def _tradeoff(table: pd.DataFrame, where: str) -> Figure:
    fig, axes = figure(6.4, 4.0)
    panel = axes[0][0]
    methods = list(dict.fromkeys(table["method"]))
    for method in methods:
        part = table[table["method"] == method].sort_values("token_ratio")
        interval, style = (part["low"], part["high"]), look(method, methods)
        label = "full attention" if method == FULL else method
        marks(panel, part["token_ratio"], part["accuracy"], interval, style, label)
    panel.set(xlabel="token ratio (%)", ylabel="correct answers (%)", ylim=(0, 1.03))
    panel.set_xlim(0, 1.03)
    percent(panel, "x")
    percent(panel, "y")
    panel.legend(loc="best")
    note(fig, f"{where}; bars: 95 % intervals")
    return fig


def _changed_first(answers: pd.DataFrame) -> list[str]:
    """Ids, starting with the questions that some settings answer correctly and others do not."""
    differs = answers.groupby("id", sort=False)["correct"].nunique() > 1
    return [*differs.index[differs], *differs.index[~differs]]


def examples(answers: pd.DataFrame, setting: str, count: int) -> list[tuple[str, str]]:
    """Ids of questions for pictures, and the outcome of each; chosen by `_RULE`.

    Args:
        answers: `sf.evaluation.own_questions.answer_table`.
        setting: the method compared with full attention.
        count: of pictures.
    """
    right = {
        name: dict(zip(group["id"].astype(str), group["correct"] >= RIGHT, strict=True))
        for name, group in answers.groupby("setting", sort=False)
        if name in (FULL, setting)
    }
    outcomes: dict[str, list[str]] = {"failure": [], "success": [], "neither": []}
    for identity, dense in right[FULL].items():
        kind = ("success" if right[setting][identity] else "failure") if dense else "neither"
        outcomes[kind].append(identity)
    failures, successes = outcomes["failure"], outcomes["success"]
    lost = min(len(failures), max(-(-count // 2), count - len(successes)))
    outcomes["failure"] = failures[:lost]
    outcomes["success"] = successes[: count - lost]
    return [(one, kind) for kind, ids in outcomes.items() for one in ids][:count]


def _samples(answers: pd.DataFrame, ids: Sequence[str]) -> Table:
    settings = list(dict.fromkeys(answers["setting"]))
    lines = {(line["id"], line["setting"]): line for line in answers.to_dict("records")}
    rows = []
    for identity in ids:
        first = lines[identity, settings[0]]
        replies = [lines[identity, setting] for setting in settings]
        rows.append(
            [
                Cell(str(identity)),
                Cell(_short(first["question"]), note=first["question"]),
                Cell(str(first["media"])),
                Cell(_short(first["answer"])),
                *(
                    Cell(
                        f"{'right' if line['correct'] else 'wrong'}: {_short(line['reply'])}",
                        f"{100 * line['token_ratio']:.0f} % of {line['prompt_tokens']} tokens",
                        line["reply"],
                    )
                    for line in replies
                ),
            ]
        )
    header = ["id", "question", "media", "answer", *settings]
    return Table("samples", "Replies", header, rows, keys=4)


def _short(text: str, most: int = 60) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _kept_pictures(
    folder: Path,
    p: Evaluated,
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    answers: pd.DataFrame,
) -> list[Picture]:
    """Drawings of the tokens that the first sparse setting keeps of the media of `examples`."""
    from sf.ask import answer, load_media, overlay
    from sf.baselines.selectors import Selection
    from sf.data.llava import is_llava
    from sf.data.prompts import question_text

    def policy_of(setting: AttentionSetting) -> Any:
        (method,) = attentions_of(model, [setting]).values()
        return method.policy() if isinstance(method, Selection) else None

    policies = {setting.name: policy_of(setting) for setting in p.settings}
    chosen = next(((name, each) for name, each in policies.items() if each is not None), None)
    if chosen is None:
        return []
    by_id = {row.id: row for row in rows}
    pictures = []
    chosen_examples = examples(answers, chosen[0], p.pictures)
    for number, (identity, outcome) in enumerate(chosen_examples, start=1):
        row = by_id[identity]
        kind: Any = row.data_type
        media = load_media(kind, str(row.media_path), p.vision, llava=is_llava(processor))
        asked = question_text(row, p.prompt_template)
        result = answer(model, processor, media, asked, chosen[1], max_new_tokens=p.max_new_tokens)
        name = f"kept_{number}"
        write_figure(overlay(result, media, row.problem), folder / "figures" / f"{name}.png")
        ratio = f"{100 * result.token_ratio:.0f} % of {result.prompt_tokens} tokens"
        caption = f"{outcome.capitalize()}, {chosen[0]}, question {identity}: {ratio}."
        pictures.append(Picture(name, caption))
    return pictures
