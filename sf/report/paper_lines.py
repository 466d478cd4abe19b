"""Lines of the paper's tables and figures, with the published values."""

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
    """One line: its keys, and a cell for each column."""

    keys: tuple[str, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table as displayed.

    Attributes:
        keys: titles of the columns that name a line, starting with the model's.
        columns: titles of the others.
        lines: each as long as the columns.
        published_of: our model -> the model whose published values are shown next to it.
        ours: the last columns, which the paper lacks: title -> name of the metric.
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
        definition: its definition.
        study: its results.
        rows: its rows; a profile has none.
        sources: receives the results used.
    """

    definition: Definition
    study: Study
    rows: Sequence[Row]
    sources: Sources

    def published_model(self, model: str) -> str:
        """The model whose published values are shown: the same model if it has any."""
        models = models_of(self.definition.published)
        if model in models or not models:
            return model
        return ORIENTATION if ORIENTATION in models else models[0]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The benchmark results (`sf.report.benchmark_tables.measured`)."""
        return measured(self.study)

    @cached_property
    def own_data(self) -> bool:
        """Whether the benchmark data are known to be real rather than synthetic."""
        return self.study.result("benchmarks") is not None and not stand_ins(self.study)

    @cached_property
    def examples(self) -> Examples:
        """The answered questions of its rows."""
        return Examples(self.study, [row.name for row in self.rows])

    def of(self, model: str) -> str:
        """The title of a picture for a model."""
        return f"{self.definition.title}, {model}"

    @property
    def published_of(self) -> dict[str, str]:
        return {model: self.published_model(model) for model in self.study.models}

    def each(self, kind: str) -> Iterator[tuple[str, Row, Result | None]]:
        """Model, row and result of a kind, in table order."""
        for model in self.study.models:
            for row in self.rows:
                axes = {"model": model, "objective" if kind == "train" else "row": row.name}
                yield model, row, self.study.result(kind, **axes)

    def origin(self, result: Result) -> dict[str, Any]:
        """The fields of a cell that identify its result."""
        source = self.sources.of(result)
        return {"source": source, "stale": self.sources.stale[source]}

    def figure(self, result: Result, **given: Any) -> Figure:
        """A cell without a published value."""
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
    """Write a drawing below the folder of a page and return its picture."""
    save(drawing, folder / "figures", name)
    return Picture(name, caption)


def a_model_each(draw: Callable[[Request, PaperTable, str], Drawing | None]) -> Draw:
    """The pictures of a page, one per model."""

    def pictures(request: Request, table: PaperTable, folder: Path) -> list[Picture]:
        drawn = ((model, draw(request, table, model)) for model in request.study.models)
        return [
            saved(drawing, model, f"{request.of(model)}: {request.definition.about}.", folder)
            for model, drawing in drawn
            if drawing is not None
        ]

    return pictures
