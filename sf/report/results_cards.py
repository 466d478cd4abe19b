"""Results cards of trained models: the content of a model card, with its sources.

A card is Markdown with the hub's `model-index` at the top, and one picture. Scores on synthetic
data get no index, because the hub would list them as real benchmark scores.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from sf.atomic_files import write_text
from sf.escaping import markdown as escaped
from sf.escaping import printable
from sf.evaluation.benchmarks import BENCHMARKS, EXTRA
from sf.plotting import save
from sf.processes import map_processes
from sf.report.benchmark_tables import NOT_MEASURED, Cell, measured, shown, span
from sf.report.gate import DENSE, STAND_INS, stand_ins
from sf.report.page import Section, Table, markdown_table
from sf.report.pictures import benchmark_picture
from sf.report.results import Study

__all__ = ["results_cards"]

HEADER = ["benchmark", "score", "full attention", "token ratio (%)", "samples"]


def results_cards(study: Study, folder: Path) -> list[Section]:
    """Write `cards/MODEL_ROW.md` and its picture for each trained model; return links to them.

    Args:
        study: its results.
        folder: of the report.
    """
    table = measured(study)
    evaluated = set(zip(table["model"], table["row"], strict=True))
    trained = [(model, row) for model in study.models for row in study.objectives]
    cards = [pair for pair in trained if pair in evaluated]
    if not cards:
        return []
    places = map_processes(partial(_write_card, study, table, folder), cards)
    links = [
        [Cell(f"{model}, {row}", link=place)]
        for (model, row), place in zip(cards, places, strict=True)
    ]
    listed = Table("cards", "Results for model cards", ["trained model"], links)
    return [Section("Results cards", tables=[listed])]


def _write_card(study: Study, table: pd.DataFrame, folder: Path, trained: tuple[str, str]) -> str:
    """Write the card of a (model, row); returns its place in the folder."""
    model, row = trained
    place = f"cards/{model}_{row}.md"
    scores = table[table["model"] == model]
    write_text(folder / place, _card(study, scores, model, row, folder / "cards"))
    return place


def _card(study: Study, scores: pd.DataFrame, model: str, row: str, folder: Path) -> str:
    own = scores[scores["row"] == row]
    name = f"{model}_{row}"
    both = scores[scores["row"].isin([DENSE, row])]
    benchmarks = [one for one in (*BENCHMARKS, *EXTRA) if one.name in set(own["benchmark"])]
    picture = benchmark_picture(both, benchmarks, [DENSE, row], f"{model}, {row}")
    assert picture is not None  # there are scores
    save(picture, folder / "figures", name)
    dense = {line["benchmark"]: line for line in both[both["row"] == DENSE].to_dict("records")}
    rows = [
        [
            Cell(line["title"]),
            _score(line),
            _score(dense[line["benchmark"]]) if line["benchmark"] in dense else Cell(NOT_MEASURED),
            Cell(
                shown(100 * line["token_ratio"]),
                span(100 * line["token_ratio_low"], 100 * line["token_ratio_high"]),
            ),
            Cell(f"{line['samples']:.0f}"),
        ]
        for line in own.to_dict("records")
    ]
    caption = "Scores and token ratios, with 95 % bootstrap intervals over questions in brackets"
    title = escaped(f"Results of {row} on {model}")
    generated = stand_ins(study)
    parts = [] if generated else [f"---\n{_index(own, name)}---"]
    parts += [f"# {title}", f"![{title}](figures/{name}.png)"]
    parts += [f"> {STAND_INS}"] if generated else []
    parts += [f"**{caption}**", markdown_table(Table(name, caption, HEADER, rows))]
    parts += ["## Provenance", _provenance(study, model, row)]
    return "\n\n".join(parts) + "\n"


def _score(line: Any) -> Cell:
    scale = line["scale"]
    return Cell(shown(line["score"], scale), span(line["low"], line["high"], scale))


def _index(own: pd.DataFrame, name: str) -> str:
    """The hub's `model-index`: one result per benchmark, in the paper's scale."""
    repositories = {one.name: one.tasks[0].repository for one in (*BENCHMARKS, *EXTRA)}
    results = [
        {
            "task": {"type": "image-text-to-text"},
            "dataset": {"name": line["title"], "type": repositories[line["benchmark"]]},
            "metrics": [
                {"type": "score", "value": round(float(line["score"]), 3)},
                {"type": "token_ratio", "value": round(float(line["token_ratio"]), 4)},
            ],
        }
        for line in own.to_dict("records")
    ]
    stream = io.StringIO()
    YAML().dump({"model-index": [{"name": name, "results": results}]}, stream)
    return stream.getvalue()


def _provenance(study: Study, model: str, row: str) -> str:
    """One line per result behind the card's values."""
    wanted = [("train", {"model": model, "objective": row})]
    wanted += [
        ("evaluate", {"model": model, "row": name, "suite": suite})
        for name in (row, DENSE)
        for suite in study.suites
    ]
    lines = []
    for kind, axes in wanted:
        result = study.result(kind, **axes)
        if result is None:
            continue
        stamp = result.stamp
        hardware = ", ".join(f"{key}: {value}" for key, value in stamp.get("hardware", {}).items())
        versions = ", ".join(f"{key} {value}" for key, value in stamp.get("versions", {}).items())
        facts = f"key {stamp['key']}, commit {result.commit}; {hardware}; {versions}"
        lines.append(f"- `{printable(str(stamp['command']))}`: {escaped(facts)}")
    return "\n".join(lines)
