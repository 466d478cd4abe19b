"""Figure 7 of the paper: successes and failures by a stated rule, with the kept tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sf.escaping import printable
from sf.evaluation.benchmarks import FAMILIES
from sf.processes import map_processes
from sf.report.cells import Figure
from sf.report.definitions import Row
from sf.report.example_picture import example_picture, kept_of, shown_of
from sf.report.examples import FAILURE, OUTCOMES, RULE, SUCCESS, Pair, Place
from sf.report.gate import DENSE, STAND_INS, stand_ins
from sf.report.page import Picture
from sf.report.paper_lines import Line, PaperTable, Request, saved
from sf.report.results import Result

__all__ = ["notes", "pictures", "sentence", "table"]

COUNTS = {
    "both right": (True, True),
    f"only {DENSE} right": (True, False),
    "only this row right": (False, True),
    "both wrong": (False, False),
}
COLUMNS = ("questions", *COUNTS, "first success", "first failure")
NONE = "none"
MOST_CHARACTERS = 400
_WHAT = {SUCCESS: "right too", FAILURE: "wrong"}


def table(request: Request) -> PaperTable:
    """One line per model, row and family of benchmarks: counts of questions, and the examples."""
    lines = []
    for model, row, family in _each(request):
        pairs = request.examples.pairs(model, row.name, family)
        result = _result(request, model, row.name)
        if not pairs or result is None:
            lines.append(Line((model, row.name, family), tuple(Figure() for _ in COLUMNS)))
            continue
        counts = Counter(pair.right for pair in pairs)
        numbers = [len(pairs), *(counts[right] for right in COUNTS.values())]
        figures = [request.figure(result, text=str(n), value=float(n)) for n in numbers]
        for outcome in OUTCOMES:
            pair = request.examples.first(model, row.name, family, outcome)
            text = NONE if pair is None else pair.place.name
            figures.append(request.figure(result, text=text))
        lines.append(Line((model, row.name, family), tuple(figures)))
    return PaperTable(("model", "method", "benchmarks"), COLUMNS, tuple(lines), {})


def _each(request: Request) -> Iterator[tuple[str, Row, str]]:
    for model in request.study.models:
        for row in request.rows:
            if row.name != DENSE:
                yield from ((model, row, family) for family in FAMILIES)


def _result(request: Request, model: str, row: str) -> Result | None:
    """An evaluation of the row, the source of its values."""
    for suite in request.study.suites:
        result = request.study.result("evaluate", model=model, row=row, suite=suite)
        if result is not None:
            return result
    return None


def sentence(model: str, lines: Sequence[Line]) -> str:
    """How often a row is wrong and the full one correct, and vice versa."""
    parts = []
    for row in dict.fromkeys(line.keys[1] for line in lines):
        own = [line.figures for line in lines if line.keys[1] == row]
        known = [figures for figures in own if figures[0].value is not None]
        asked, _, lost, won, _ = (int(sum(f[at].value or 0 for f in known)) for at in range(5))
        parts.append(
            f"of {asked} questions {row} answers {lost} wrong that {DENSE} answers right, and "
            f"{won} the other way round"
        )
    return f"{model}: {'; '.join(parts)}."


def notes(request: Request) -> list[str]:
    """Notes for the reader: the rule, families without an example, synthetic data."""
    rule = RULE.format(dense=DENSE, row="the row", outcome="right (success) or wrong (failure)")
    notes = [f"Each example is {rule}; one of each family of benchmarks."]
    for model, row, family in _each(request):
        if not request.examples.pairs(model, row.name, family):
            continue
        missing = [
            outcome
            for outcome in OUTCOMES
            if request.examples.first(model, row.name, family, outcome) is None
        ]
        notes += [f"{model}, {row.name}, {family}: there is no {outcome}." for outcome in missing]
    if not any(result.kind == "previews" for result in request.study.everything()):
        notes.append("There are no pictures: the stage previews was not run.")
    return [*notes, *([STAND_INS] if stand_ins(request.study) else [])]


def pictures(request: Request, table: PaperTable, folder: Path) -> list[Picture]:
    """The pictures of the examples that have media."""
    chosen = [
        (model, row.name, family, outcome, pair)
        for model, row, family in _each(request)
        for outcome in OUTCOMES
        if (pair := request.examples.first(model, row.name, family, outcome)) is not None
    ]
    previews = _previews(request, {pair.place for *_, pair in chosen})
    drawn = map_processes(partial(_drawn, previews, folder), chosen)
    return [picture for picture in drawn if picture is not None]


def _drawn(
    previews: Mapping[Place, dict[str, Any]], folder: Path, chosen: tuple[str, str, str, str, Pair]
) -> Picture | None:
    """The picture of one example; None if it has no media."""
    model, row, family, outcome, pair = chosen
    preview = previews.get(pair.place)
    shown = shown_of(preview) if preview is not None else []
    if preview is None or not shown:
        return None
    lines = _lines(row, pair, str(preview["question"]))
    drawing = example_picture(shown, kept_of(pair.sparse, shown), lines)
    name = "_".join([model, row, family.replace(" ", "-"), outcome])
    rule = RULE.format(dense=DENSE, row=row, outcome=_WHAT[outcome])
    caption = f"{outcome.capitalize()}, {model}, {row}: {pair.place.name}, {rule} ({family})."
    return saved(drawing, name, caption, folder)


def _previews(request: Request, places: set[Place]) -> dict[Place, dict[str, Any]]:
    """The preview lines of some questions."""
    wanted = {
        (place.of.name, place.of.tasks[place.task].name, place.doc_id): place for place in places
    }
    lines: dict[Place, dict[str, Any]] = {}
    for result in request.study.everything():
        if result.kind == "previews":
            for line in result.table("previews.parquet").to_dict("records"):
                place = wanted.get((line["benchmark"], line["task"], line["doc_id"]))
                if place is not None:
                    lines[place] = {str(name): value for name, value in line.items()}
    return lines


def _lines(row: str, pair: Pair, question: str) -> list[str]:
    """Question, answer and both replies, each shortened to a few lines."""
    ratio = f"{100 * pair.sparse['token_ratio']:.1f} % of {pair.sparse['prompt_tokens']} tokens"
    return [
        _short(f"Question: {question}"),
        _short(f"Answer: {pair.sparse['target']}"),
        _short(f"{DENSE}: {pair.dense['reply']}"),
        _short(f"{row} ({ratio}): {pair.sparse['reply']}"),
    ]


def _short(text: str) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
