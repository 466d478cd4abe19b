"""Prepared data reach MLflow as a dataset."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sf.data.dataset_record import write_dataset_record
from sf.data.manifest import Row
from sf.mlflow_runs import _log_dataset


def splits() -> dict[str, list[Row]]:
    rows = [Row(str(n), f"q{n}", "OCR", "image", (), "", "x", f"{n}.png", "s") for n in range(3)]
    return {"train": rows[:2], "heldout": rows[2:]}


def digest(folder, given) -> str:
    write_dataset_record(folder, "some-folder", given)
    return json.loads((folder / "dataset.json").read_text())["digest"]


def test_digest_follows_the_content_not_the_order(tmp_path):
    plain = digest(tmp_path, splits())
    turned = {split: rows[::-1] for split, rows in splits().items()}
    assert digest(tmp_path, turned) == plain
    moved = {"train": splits()["train"] + splits()["heldout"], "heldout": []}
    assert digest(tmp_path, moved) != plain
    changed = splits()
    changed["train"][0] = replace(changed["train"][0], answer="y")
    assert digest(tmp_path, changed) != plain


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_dataset(tmp_path):
    from mlflow.tracking import MlflowClient

    write_dataset_record(tmp_path, "hub:a/b@" + "c" * 40, splits())
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "art").as_uri())
    run_id = client.create_run(experiment).info.run_id
    _log_dataset(client, run_id, tmp_path / "dataset.json")
    _log_dataset(client, run_id, tmp_path / "absent.json")
    (entry,) = client.get_run(run_id).inputs.dataset_inputs
    assert entry.dataset.name == "video-r1-260k"
    assert entry.dataset.source_type == "hub"
    assert json.loads(entry.dataset.profile) == {"num_train": 2, "num_heldout": 1}
    assert [file.path for file in client.list_artifacts(run_id)] == ["dataset.json"]
