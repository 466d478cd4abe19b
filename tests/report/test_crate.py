"""The RO-Crate of a report: the files that it names exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_study
import pytest

from sf.report.crate import NAME, write_crate


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.keys() == {"@id"}:
            yield value["@id"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By name; one call read a result and a local source."""
    monkeypatch.chdir(tmp_path)
    root = Path("results/mini")
    made_study.stamp(root / "prepare", "prepare")
    made_study.write_scores(root / "evaluate/tiny/full/all", 0.8, 1.0)
    stamp = root / "evaluate/tiny/full/all/stage.json"
    content = json.loads(stamp.read_text())
    content["input_paths"] = {"data": "results/mini/prepare", "source": "elsewhere"}
    stamp.write_text(json.dumps(content))
    folder = Path("reports/mini")
    for name in ("index.html", "tables/equal_token_ratio.csv", "samples/mme/questions.js"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
    write_crate(made_study.study_at(root), "a study", folder)
    entities = json.loads((folder / NAME).read_text())["@graph"]
    named = {entity["@id"]: entity for entity in entities}
    assert len(named) == len(entities)
    return named


def test_every_reference_is_described(graph: dict[str, Any]) -> None:
    outside = {"https://w3id.org/ro/crate/1.1"}
    assert set(references([*graph.values()])) <= graph.keys() | outside


def test_the_files_are_parts_and_samples_one(graph: dict[str, Any]) -> None:
    parts = {part["@id"] for part in graph["./"]["hasPart"]}
    assert parts == {"index.html", "tables/equal_token_ratio.csv", "samples/"}
    assert graph["tables/equal_token_ratio.csv"]["encodingFormat"] == "text/csv"
    assert graph["index.html"]["contentSize"] == "7"


def test_a_call_has_command_inputs_and_result(graph: dict[str, Any]) -> None:
    calls = {one["name"]: one for one in graph.values() if one["@type"] == "CreateAction"}
    assert calls.keys() == {"sf run prepare", "sf run evaluate"}
    call = calls["sf run evaluate"]
    assert call["object"] == [{"@id": "#results/mini/prepare"}]
    assert call["result"] == {"@id": "#results/mini/evaluate/tiny/full/all"}
    assert graph["./"]["mentions"] == [{"@id": one["@id"]} for one in calls.values()]
    assert "torch 2.13.0" in graph["#sf"]["softwareRequirements"]
