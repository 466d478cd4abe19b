"""What the tables and figures of the paper are made of: lines of figures, beside the published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Drawing

from sf.plotting import save
from sf.report.benchmark_tables import ORIENTATION, measured, span
from sf.report.cells import NOT_PUBLISHED, Figure, Sources
from sf.report.definitions import Definition, Row
from sf.report.examples import Examples
from sf.report.gate import stand_ins
from sf.report.page import Picture
from sf.report.published import models_of
from sf.report.results import Result, Study

__all__ = ["Draw", "Line", "PaperTable", "Request", "a_model_each", "saved"]


@dataclass(frozen=True)
class Line:
    """One line: what names it, and a figure for each column."""

    keys: tuple[str, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table as it is shown.

    Attributes:
        keys: titles of the columns that name a line, the model's first.
        columns: titles of the others.
        lines: as long as the columns each.
        published_of: model whose published figures stand beside each of ours, by our model.
        ours: the last columns, which the paper does not have: the metric's name by title.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    published_of: Mapping[str, str]
    ours: Mapping[str, str] = field(default_factory=dict)

    @property
    def of_paper(self) -> tuple[Line, ...]:
        """The lines without our own columns."""
        count = len(self.columns) - len(self.ours)
        return tuple(Line(line.keys, line.figures[:count]) for line in self.lines)


@dataclass(frozen=True)
class Request:
    """One table or figure of a study.

    Attributes:
        definition: what it shows.
        study: its results.
        rows: that it shows; a profile has none.
        sources: filled with where the figures come from.
    """

    definition: Definition
    study: Study
    rows: Sequence[Row]
    sources: Sources

    def published_model(self, model: str) -> str:
        """The model whose published figures stand beside a model's: its own if there are any."""
        models = models_of(self.definition.published)
        if model in models or not models:
            return model
        return ORIENTATION if ORIENTATION in models else models[0]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """What was measured on the benchmarks (`sf.report.benchmark_tables.measured`)."""
        return measured(self.study)

    @cached_property
    def own_data(self) -> bool:
        """Whether the benchmarks' data are known to be their own, not generated."""
        return self.study.result("benchmarks") is not None and not stand_ins(self.study)

    @cached_property
    def examples(self) -> Examples:
        """The answered questions of its rows."""
        return Examples(self.study, [row.name for row in self.rows])

    def of(self, model: str) -> str:
        """What a picture is of."""
        return f"{self.definition.title}, {model}"

    @property
    def published_of(self) -> dict[str, str]:
        return {model: self.published_model(model) for model in self.study.models}

    def each(self, kind: str) -> Iterator[tuple[str, Row, Result | None]]:
        """Model, row and result of a kind, in the tables' order."""
        for model in self.study.models:
            for row in self.rows:
                axes = {"model": model, "objective" if kind == "train" else "row": row.name}
                yield model, row, self.study.result(kind, **axes)

    def origin(self, result: Result) -> dict[str, Any]:
        """The fields of a figure that say which result it is from."""
        source = self.sources.of(result)
        return {"source": source, "stale": self.sources.stale[source]}

    def figure(self, result: Result, **given: Any) -> Figure:
        """A figure without a published one beside it."""
        return Figure(**{"verdict": NOT_PUBLISHED, **given, **self.origin(result)})

    def share(
        self, result: Result, value: float, low: float, high: float, samples: int = 0
    ) -> Figure:
        """A share in [0, 1] as a percentage with its interval."""
        text, interval = f"{100 * value:.1f}", span(100 * low, 100 * high)
        return self.figure(result, text=text, value=100 * value, interval=interval, samples=samples)


Draw = Callable[[Request, PaperTable, Path], list[Picture]]
"""Writes the pictures of a page into its folder."""


def saved(drawing: Drawing, name: str, caption: str, folder: Path) -> Picture:
    """A picture, once written below the folder of a page."""
    save(drawing, folder / "figures", name)
    return Picture(name, caption)


def a_model_each(draw: Callable[[Request, PaperTable, str], Drawing | None]) -> Draw:
    """Pictures of a page: what a function draws of each model."""

    def pictures(request: Request, table: PaperTable, folder: Path) -> list[Picture]:
        drawn = ((model, draw(request, table, model)) for model in request.study.models)
        return [
            saved(drawing, model, f"{request.of(model)}: {request.definition.about}.", folder)
            for model, drawing in drawn
            if drawing is not None
        ]

    return pictures
