"""The study's own run in MLflow: tables, averages, trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow_results import IDENTITY, artifact, runs

from sf.atomic_files import write_json, write_text
from sf.evaluation.benchmarks import BENCHMARKS
from sf.mlflow_store import client_of_store
from sf.mlflow_study import averages, study_address
from sf.tables import write_csv
from sf.tracking import log_all

pytest_plugins = ("mlflow_results",)


def finished(stage: str, place: str, **parameters: Any) -> Path:
    """A result of the study `test` as `sf run` leaves it."""
    output = Path(place)
    values = {"seed": 7, "output": place, **parameters}
    record = {**IDENTITY, "stage": stage, "key": f"key of {place}", "parameters": values}
    write_json(output / "stage.json", {**record, "study": "test"})
    write_json(output.parent / f".{output.name}.work/record.json", {**record, "study": "test"})
    return output


def table(name: str, length: int = 10) -> None:
    output = finished("table", f"results/test/table/{name}")
    write_text(output / f"{name}.md", f"**{name}** " + "x" * length)
    for kind in ("csv", "tex"):
        write_text(output / f"{name}.{kind}", name)
    write_text(output / "index.html", f"<h1>{name}</h1>")


def test_the_studys_run_shows_its_tables(place: Path) -> None:
    table("table2")
    table("table1")
    table("table3", length=9000)  # too long for a description
    report = finished("report", "reports/test")
    write_json(report / "metrics.json", {"tiny/zipvl/image_average": 70.0})
    assert log_all(Path("results/test"), Path("reports")) == 4
    (parent,) = runs(**{"sf.parent": "true"})
    note = parent.data.tags["mlflow.note.content"]
    assert note.index("**table1**") < note.index("**table2**")
    assert "table3" not in note
    assert len(note) < 8000
    assert parent.data.metrics == {"tiny/zipvl/image_average": 70.0}
    for name in ("table1", "table2", "table3"):
        assert artifact(parent, f"tables/{name}.html").read_text() == f"<h1>{name}</h1>"
        assert artifact(parent, f"tables/{name}.tex").read_text() == name


@pytest.mark.parametrize("kinds", [("image",), ("image", "video")])
def test_every_evaluation_has_metrics_of_the_same_names(place: Path, kinds: tuple[str]) -> None:
    output = finished("evaluate", "results/test/evaluate/tiny/zipvl/all")
    shown = [benchmark for benchmark in BENCHMARKS if benchmark.kind in kinds]
    lines = [{"benchmark": b.name, "score": b.scale / 2, "token_ratio": 0.25} for b in shown]
    write_csv(pd.DataFrame(lines), output / "tables/scores.csv")
    write_json(output / "metrics.json", {"chartqa": 50.0})
    assert log_all(Path("results")) == 1
    (run,) = runs(**{"sf.stage": "evaluate"})
    names = [f"{kind}_average" for kind in kinds] + ["image_text_average", "image_other_average"]
    expected = {"chartqa": 50.0, "token_ratio": 0.25, **dict.fromkeys(names, 50.0)}
    assert run.data.metrics == expected


def test_an_average_needs_its_own_benchmarks_only(tmp_path: Path) -> None:
    scores = {"chartqa": 60.0, "textvqa_val": 70.0, "ocrbench": 800.0, "mme": 1400.0}
    lines = [{"benchmark": n, "score": s, "token_ratio": 0.25} for n, s in scores.items()]
    write_csv(pd.DataFrame(lines), tmp_path / "tables/scores.csv")
    assert averages(tmp_path) == {"token_ratio": 0.25, "image_text_average": 70.0}


def test_a_trained_model_is_registered_once(place: Path) -> None:
    output = finished("train", "results/test/train/tiny/own/seed7", model="tiny", row="own")
    write_text(output / "README.md", "# A card")
    write_text(output / "sparsity.json", "{}")
    client = client_of_store()
    log_all(Path("results"))
    (output.parent / f".{output.name}.work/mlflow.json").unlink()
    log_all(Path("results"))
    (version,) = client.search_model_versions("name = 'test-tiny-own-seed7'")
    assert version.description == "# A card"
    assert version.tags["sf.weights"] == str(output)
    assert client.get_model_version_by_alias(version.name, "current").version == version.version
    run = client.get_run(version.run_id)
    assert run.data.tags["sf.stage"] == "train"
    assert artifact(run, "model/sparsity.json").read_text() == "{}"


def test_the_address_is_that_of_the_studys_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table("table1")
    log_all(Path("results"))
    (parent,) = runs(**{"sf.parent": "true"})
    address = study_address(client_of_store(), "test")
    assert address.startswith("http://127.0.0.1:5000/#/experiments/")
    assert address.endswith(f"/runs/{parent.info.run_id}?workflowType=machine_learning")
