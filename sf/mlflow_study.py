"""A study in MLflow: its tables in one run, its trained models in the registry."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json
from sf.escaping import printable
from sf.evaluation.benchmarks import AVERAGES
from sf.layout import FOLDERS, STAMP
from sf.mlflow_runs import log_metrics
from sf.mlflow_store import STUDY_NOTE, experiment_of_study, tracking_uri
from sf.report.definitions import DEFINITIONS
from sf.report.published import average

__all__ = ["averages", "register_model", "show_tables", "study_address"]

_NOTE_LENGTH = 7500  # a tag may have 8000 characters
_MODEL_FILES = ("README.md", "sparsity.json", "config.json")
_ALIAS = "current"


def averages(output: Path) -> dict[str, float]:
    """Token ratio and averages of an evaluation, under the same names in every run.

    Args:
        output: of the stage `evaluate`.

    Returns:
        `token_ratio` (of all its benchmarks), and those of `AVERAGES` of which the evaluation has
        all benchmarks.
    """
    with (output / "tables/scores.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    scores = {line["benchmark"]: float(line["score"]) for line in lines}
    ratios = [float(line["token_ratio"]) for line in lines]
    figures = {"token_ratio": sum(ratios) / len(ratios)} if ratios else {}
    for name, benchmarks in AVERAGES.items():
        mean = average(scores, benchmarks)
        if mean is not None:
            figures[name] = mean
    return figures


def show_tables(client: Any, parent: str, study: str) -> None:
    """Update a study's parent run with its finished tables and its report.

    The description contains the tables up to MLflow's length limit, the run's artifacts all of
    them; the report's values become metrics of the run.
    """
    notes, room = [STUDY_NOTE], _NOTE_LENGTH - len(STUDY_NOTE)
    for folder in _finished_tables(study):
        name = folder.name
        text = printable((folder / f"{name}.md").read_text(encoding="utf-8"))
        if len(text) <= room:
            notes.append(text)
            room -= len(text)
        page = (folder / "index.html").read_text(encoding="utf-8")
        client.log_text(parent, page, f"tables/{name}.html")
        for kind in ("csv", "md", "tex"):
            client.log_artifact(parent, str(folder / f"{name}.{kind}"), "tables")
    client.set_tag(parent, "mlflow.note.content", "\n\n".join(notes))
    figures = Path(FOLDERS["report"].format(scale=study)) / "metrics.json"
    if figures.is_file():
        known = client.get_run(parent).data.metrics
        changed = {k: v for k, v in read_json(figures).items() if known.get(k) != v}
        log_metrics(client, parent, [(0, changed)])


def _finished_tables(study: str) -> Iterator[Path]:
    """Folders of the tables, in the paper's order."""
    for name in DEFINITIONS:
        folder = Path(FOLDERS["table"].format(scale=study, target=name))
        if (folder / STAMP).is_file():
            yield folder


def register_model(client: Any, run_id: str, output: Path, record: Mapping[str, Any]) -> None:
    """Register a trained model once, with its card as description, its run as lineage and an alias.

    The weights remain in the result folder, which a tag names.

    Args:
        client: of the store.
        run_id: of the training run.
        output: of the stage `train`.
        record: the result's stamp.
    """
    from mlflow.exceptions import MlflowException

    values = record["parameters"]
    name = f"{record['study']}-{values['model']}-{values['row']}-seed{values['seed']}"
    try:
        client.create_registered_model(name, tags={"sf.study": record["study"]})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    quoted = name.replace("'", "")
    versions = client.search_model_versions(f"name = '{quoted}'")
    version = next((v for v in versions if v.tags.get("sf.key") == record["key"]), None)
    if version is None:
        for file in _MODEL_FILES:
            if (output / file).is_file():
                client.log_artifact(run_id, str(output / file), "model")
        card = output / "README.md"
        version = client.create_model_version(
            name,
            f"runs:/{run_id}/model",
            run_id,
            tags={
                "sf.key": record["key"],
                "sf.weights": str(output),
                "sf.inputs": json.dumps(record["inputs"])[:5000],
            },
            description=printable(card.read_text("utf-8"))[:5000] if card.is_file() else "",
        )
    client.set_registered_model_alias(name, _ALIAS, version.version)


def study_address(client: Any, study: str) -> str:
    """The URL of a study's parent run in MLflow's pages.

    For a store that is not a server, the URL is that of `mlflow ui` in this folder.
    """
    uri = tracking_uri()
    base = uri.rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    experiment, parent = experiment_of_study(client, study)
    place = f"#/experiments/{experiment}/runs/{parent}?workflowType=machine_learning"
    return f"{base}/{place}"
