"""The samples of a study: every question with the replies of two rows side by side.

`samples/samples.html` loads the selected data from neighbouring files: the questions of a
benchmark, and the replies of one model and row to them. A single page would be too large for the
real benchmarks. The files are scripts, which a page opened from disk may load, and contain only a
call with JSON.
"""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path
from typing import Any

from sf.atomic_files import write_text
from sf.escaping import printable
from sf.evaluation.benchmarks import BENCHMARKS, EXTRA, RIGHT
from sf.evaluation.layer_groups import group_names, layer_groups
from sf.json_lines import read_json_lines
from sf.processes import map_processes
from sf.report.benchmark_tables import Cell
from sf.report.gate import DENSE
from sf.report.page import Section, Table, page_environment
from sf.report.results import Result, Study

__all__ = ["PAGE", "samples_sections"]

PAGE = "samples/samples.html"
HEADER = ("benchmark", "questions")
_TEXT = (
    "Each link opens the questions that the full row answers correctly and another row does not. "
    "The page also lets you choose benchmark, model, rows and samples."
)


def samples_sections(study: Study, folder: Path) -> list[Section]:
    """Write the page of the samples and its data; return links to it.

    Args:
        study: its results.
        folder: of the report.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    counts: dict[str, int] = {}
    results = study.everything()
    evaluations = [r for r in results if r.kind == "evaluate" and study.shown(r)]
    written = map_processes(partial(_write_replies, folder), evaluations)
    for result, numbers in zip(evaluations, written, strict=True):
        for benchmark, number in numbers.items():
            models = rows.setdefault(benchmark, {})
            models.setdefault(result.axes["model"], []).append(result.axes["row"])
            counts[benchmark] = max(counts.get(benchmark, 0), number)
    for result in results:
        if result.kind == "previews":
            for benchmark, questions in _questions(result).items():
                path = folder / "samples" / benchmark / "questions.js"
                write_text(path, _call("questions", [benchmark], questions))
    if not rows:
        return []
    titles = {one.name: one.title for one in (*BENCHMARKS, *EXTRA) if one.name in rows}
    given = {"rows": rows, "titles": titles, "right": RIGHT, "dense": DENSE}
    page = page_environment().get_template("samples.html.jinja").render(given=given)
    write_text(folder / PAGE, printable(page))
    links = [
        [Cell(title, link=f"{PAGE}#benchmark={name}&shown=lost"), Cell(str(counts[name]))]
        for name, title in titles.items()
    ]
    table = Table("samples", "Replies of two rows side by side", HEADER, links)
    return [Section("Samples", text=[_TEXT], tables=[table])]


def _write_replies(folder: Path, result: Result) -> dict[str, int]:
    """Write an evaluation's replies; returns the number of samples of each benchmark."""
    model, row = result.axes["model"], result.axes["row"]
    samples = _samples(result)
    for benchmark, lines in samples.items():
        path = folder / "samples" / benchmark / model / f"{row}.js"
        write_text(path, _call("replies", [benchmark, model, row], lines))
    return {benchmark: len(lines) for benchmark, lines in samples.items()}


def _call(name: str, arguments: list[str], content: Any) -> str:
    """A script that hands JSON to a function of the page."""
    parts = [json.dumps(part) for part in (*arguments, content)]  # pure ASCII
    return f"{name}({', '.join(parts)});\n"


def _samples(result: Result) -> dict[str, list[dict[str, Any]]]:
    """The page's data on each sample, by benchmark."""
    samples: dict[str, list[dict[str, Any]]] = {}
    file = result.folder / "samples.jsonl"
    for sample in read_json_lines(file) if file.is_file() else ():
        ratios = sample["layer_ratios"]
        groups = layer_groups(len(ratios))
        means = [sum(ratios[layer] for layer in group) / len(group) for group in groups]
        samples.setdefault(sample["benchmark"], []).append(
            {
                "row": f"{sample['task']} {sample['doc_id']}",
                "asked": sample["source"],
                "target": printable(sample["target"]),
                "reply": printable(sample["reply"]),
                "score": sample["score"],
                "ratio": sample["token_ratio"],
                "tokens": sample["prompt_tokens"],
                "groups": dict(zip(group_names(groups), means, strict=True)),
                "kept": sample.get("kept_cells"),  # None in older results
            }
        )
    return samples


def _questions(result: Result) -> dict[str, dict[str, dict[str, Any]]]:
    """Text and picture of each question, by benchmark and row."""
    questions: dict[str, dict[str, dict[str, Any]]] = {}
    for line in result.table("previews.parquet").to_dict("records"):
        picture = base64.b64encode(line["picture"]).decode()
        questions.setdefault(str(line["benchmark"]), {})[f"{line['task']} {line['doc_id']}"] = {
            "question": printable(line["question"]),
            "picture": f"data:image/jpeg;base64,{picture}" if picture else "",
            "places": json.loads(line.get("places", "[]")),  # absent from older results
        }
    return questions
