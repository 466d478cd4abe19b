"""The tables and figures of the paper (arXiv 2504.18579): their contents and required results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from sf.evaluation.benchmarks import BENCHMARKS, Benchmark, suite
from sf.fields import Section
from sf.layout import STAMP
from sf.report.results import Study

__all__ = ["DEFINITIONS", "NOT_IN_PAPER", "Definition", "Row", "Shows", "Targets"]

Shows = Literal["benchmarks", "curve", "lengths", "layers", "profile", "cost", "examples"]
RESULTS: Mapping[Shows, tuple[str, ...]] = {
    "benchmarks": ("evaluate",),
    "curve": ("calibrate", "accuracy_curve"),
    "lengths": ("accuracy_curve",),
    "layers": ("accuracy_curve",),
    "profile": ("profile",),
    "cost": ("train",),
    "examples": ("evaluate", "previews"),
}
"""Kinds of results (`sf.layout.FOLDERS`) behind a table or figure."""


@dataclass(frozen=True)
class Definition:
    """One table or figure.

    Attributes:
        title: with the paper's number.
        about: its subject.
        shows: its form.
        kind: of the benchmarks, "image" or "video"; empty for both.
        published: its name in `published.csv`; empty if our sources have no values of it.
        names: of the benchmarks; empty for all of the kind.
        average: name of the published average.
        metric: of the profile, for figures 4c and 4d.
    """

    title: str
    about: str
    shows: Shows
    kind: str = ""
    published: str = ""
    names: tuple[str, ...] = ()
    average: str = "average"
    metric: str = ""

    @property
    def results(self) -> tuple[str, ...]:
        """The kinds of results that it needs."""
        return RESULTS[self.shows]

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Its benchmarks, in table order."""
        return [
            benchmark
            for benchmark in BENCHMARKS
            if self.kind in ("", benchmark.kind)
            and (not self.names or benchmark.name in self.names)
        ]

    def is_in(self, name: str) -> bool:
        """Whether the suite of that name has one of its benchmarks."""
        names = {benchmark.name for benchmark in self.benchmarks}
        return any(benchmark.name in names for benchmark in suite(name))


DEFINITIONS: Mapping[str, Definition] = {
    "table1": Definition(
        "Table 1",
        "image benchmarks",
        "benchmarks",
        "image",
        "table1_image",
        (),
        "image_average",
    ),
    "table2": Definition(
        "Table 2", "video benchmarks", "benchmarks", "video", "table2_video", (), "video_average"
    ),
    "table3": Definition(
        "Table 3",
        "trained sparse attention",
        "benchmarks",
        published="table3_baselines",
        names=("mme", "mmstar", "chartqa", "videomme"),
    ),
    "table4": Definition(
        "Table 4",
        "selectors of training and inference",
        "benchmarks",
        published="table4_selector",
        names=("mme", "videomme"),
    ),
    "table5": Definition(
        "Table 5",
        "ranges of thresholds and group sizes",
        "benchmarks",
        names=("mme", "videomme"),
    ),
    "table6": Definition(
        "Table 6",
        "rewards for tokens, and for tokens and latency",
        "benchmarks",
        "video",
        "table6_reward",
        (),
        "video_average",
    ),
    "table7": Definition("Table 7", "cost of training", "cost", published="cost"),
    "table8": Definition(
        "Table 8", "softmax temperatures", "benchmarks", published="table8_temperature"
    ),
    "figure4a": Definition("Figure 4a", "threshold, token ratio and accuracy", "curve"),
    "figure4b": Definition("Figure 4b", "token ratio and accuracy by prompt length", "lengths"),
    "figure4c": Definition(
        "Figure 4c", "prefill latency by prompt length", "profile", metric="prefill_ms"
    ),
    "figure4d": Definition(
        "Figure 4d", "decoding memory by prompt length", "profile", metric="held_decode_bytes"
    ),
    "figure5": Definition("Figure 5", "token ratio by layer before and after training", "layers"),
    "figure7": Definition("Figure 7", "successes and failures with the kept tokens", "examples"),
}


NOT_IN_PAPER = ("random", "evs", "vidcom2", "videonsa", "pathwise", "distil")
"""Methods and objectives in no table of the paper."""


class Row(Section):
    """A row of a table."""

    name: str = Field(description="name in the parameters")
    as_published: str = Field(description="name in published.csv")
    trained: bool = Field(description="whether its results have one folder per seed")


@dataclass(frozen=True)
class Targets:
    """The tables and figures of a study.

    Attributes:
        asked: names of those whose page the report includes once it exists.
        lacking: number of missing rows for each of the others.
    """

    asked: tuple[str, ...] = ()
    lacking: Mapping[str, int] = field(default_factory=dict)

    def pages(self, study: Study) -> dict[str, Path]:
        """The folders of the finished ones."""
        folders = {name: study.folder("table", target=name) for name in self.asked}
        return {name: path for name, path in folders.items() if (path / STAMP).is_file()}
