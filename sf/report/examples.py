"""Example questions, chosen by a rule: the full row is correct, another row correct or wrong.

The rule: the first question of each family of benchmarks, in the tables' order of benchmarks and
each benchmark's own order. A question counts if both rows were asked the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from sf.evaluation.benchmarks import BENCHMARKS, FAMILIES, RIGHT, Benchmark
from sf.json_lines import read_json_lines
from sf.report.gate import DENSE
from sf.report.results import Result, Study

__all__ = ["FAILURE", "OUTCOMES", "RULE", "SUCCESS", "Examples", "Pair", "Place"]

RULE = (
    "the first question, in the tables' order of benchmarks and each benchmark's own order, that "
    "{dense} answers right and {row} {outcome}"
)
SUCCESS, FAILURE = "success", "failure"
OUTCOMES: Mapping[str, tuple[bool, bool]] = {SUCCESS: (True, True), FAILURE: (True, False)}
"""Whether the full row and the other one are correct."""
KEPT = ("source", "reply", "target", "score", "token_ratio", "prompt_tokens", "layer_ratios")


class Place(NamedTuple):
    """The position of a question; positions are ordered as in the tables and benchmarks."""

    benchmark: int
    task: int
    doc_id: int

    @property
    def of(self) -> Benchmark:
        """Its benchmark."""
        return BENCHMARKS[self.benchmark]

    @property
    def name(self) -> str:
        """Benchmark, task if there are several, and number of the question."""
        tasks = self.of.tasks
        named = f" ({tasks[self.task].name})" if len(tasks) > 1 else ""
        return f"{self.of.title}{named} {self.doc_id}"


@dataclass(frozen=True)
class Pair:
    """One question with the answers of the full row and another one.

    Attributes:
        place: its position.
        dense, sparse: the fields `KEPT` of their samples, and `kept_cells`, None in older results.
    """

    place: Place
    dense: Mapping[str, Any]
    sparse: Mapping[str, Any]

    @property
    def right(self) -> tuple[bool, bool]:
        """Whether the full row and the other one are correct."""
        return self.dense["score"] >= RIGHT, self.sparse["score"] >= RIGHT


Samples = dict[Place, Mapping[str, Any]]


@dataclass(frozen=True)
class Examples:
    """The answered questions of a study.

    Attributes:
        study: its results.
        rows: the rows to read besides the full one.
    """

    study: Study
    rows: Sequence[str]

    @cached_property
    def _samples(self) -> dict[tuple[str, str], Samples]:
        """The samples by model and row."""
        samples: dict[tuple[str, str], Samples] = {}
        for result in self.study.everything():
            if result.kind == "evaluate" and self.study.shown(result):
                model, row = result.axes["model"], result.axes["row"]
                if row in (DENSE, *self.rows):
                    samples.setdefault((model, row), {}).update(_read(result))
        return samples

    @cached_property
    def _pairs(self) -> dict[tuple[str, str, str], list[Pair]]:
        """The questions that a row and the full one were both asked, by model, row and family."""
        families = {one.name: name for name, many in FAMILIES.items() for one in many}
        pairs: dict[tuple[str, str, str], list[Pair]] = {}
        for (model, row), samples in self._samples.items():
            dense = self._samples.get((model, DENSE), {})
            for place in sorted(samples.keys() & dense.keys()):
                if samples[place]["source"] == dense[place]["source"]:
                    named = model, row, families[place.of.name]
                    pair = Pair(place, dense[place], samples[place])
                    pairs.setdefault(named, []).append(pair)
        return pairs

    def pairs(self, model: str, row: str, family: str) -> list[Pair]:
        """The questions of a family that a row and the full one were both asked, in order.

        Args:
            model: base model.
            row: the other row.
            family: key of `sf.evaluation.benchmarks.FAMILIES`.
        """
        return self._pairs.get((model, row, family), [])

    def first(self, model: str, row: str, family: str, outcome: str) -> Pair | None:
        """The example that the rule selects; None if no question has the outcome."""
        pairs = self.pairs(model, row, family)
        return next((pair for pair in pairs if pair.right == OUTCOMES[outcome]), None)


def _read(result: Result) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    places = {
        (benchmark.name, task.name): (number, at)
        for number, benchmark in enumerate(BENCHMARKS)
        for at, task in enumerate(benchmark.tasks)
    }
    file = result.folder / "samples.jsonl"
    for sample in read_json_lines(file) if file.is_file() else ():
        named = places.get((sample["benchmark"], sample["task"]))
        if named is not None:  # not one of those beyond the tables
            kept = {name: sample[name] for name in KEPT}
            yield Place(*named, sample["doc_id"]), {**kept, "kept_cells": sample.get("kept_cells")}
