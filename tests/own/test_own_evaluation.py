"""`sf evaluate` on a user's model and questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sf.errors import DataError, SparsityForcingError
from sf.evaluation.resumable_log import ResumableLog
from sf.jobs import Job
from sf.mini.scenes import render, sample_scene
from sf.models import build_tiny
from sf.own import Comparison, Inputs, evaluation, stages
from sf.own.evaluation import evaluate
from sf.stages import questions
from sf.tracking import SilentTracker


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and six questions about three pictures."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(6):
        name = f"{number % 3}.png"
        if number < 3:
            render(sample_scene(rng, rows=3, cols=4)).save(folder / "photos" / name)
        records.append({"question": f"What is it? {number}", "answer": "red", "image": name})
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, records)))
    model, processor = build_tiny("qwen2_5_vl", ["What is it? red blue"] * 3, seed=0)
    model.save_pretrained(folder / "ckpt")
    processor.save_pretrained(folder / "ckpt")
    return folder


@pytest.fixture(scope="module")
def result(files: Path) -> Path:
    """The result of the whole evaluation, with a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        return evaluate(inputs_of(files), replace(SMALL, pictures=1), output=files / "result")


@pytest.fixture
def inputs(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.chdir(tmp_path)
    return inputs_of(files)


def inputs_of(files: Path) -> Inputs:
    return Inputs(str(files / "ckpt"), files / "q.jsonl", files / "photos", device="cpu")


SMALL = Comparison(retention_p=[0.5, 1.0], max_new_tokens=3, batch=4, pictures=0)


def test_table_and_page_hold_what_was_answered(result: Path) -> None:
    table = pd.read_csv(result / "tables" / "summary.csv").set_index("setting")
    assert list(table.index) == ["full", "zipvl 0.5", "zipvl 1"]
    assert (table["questions"] == 6).all()
    assert table["token_ratio"]["full"] == table["token_ratio"]["zipvl 1"] == 1.0
    assert table["token_ratio"]["zipvl 0.5"] < 0.8
    assert table["difference"]["zipvl 1"] == 0.0
    answers = pd.read_parquet(result / "tables" / "answers.parquet").set_index(["setting", "id"])
    assert (answers.loc["full"]["reply"] == answers.loc["zipvl 1"]["reply"]).all()
    page = (result / "index.html").read_text()
    assert page.count("data:image/png") == 2  # the curve and one question's kept tokens
    assert "Neither, zipvl 0.5, question" in page  # its caption: full attention was wrong too
    assert "What is it? 5" in page


def test_a_killed_evaluation_goes_on(
    inputs: Inputs, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, batches = ResumableLog.add, []

    def killed(self, replies):
        add(self, replies)
        batches.append(list(replies))
        if len(batches) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableLog, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(inputs, SMALL, output=Path("killed"))
    assert not Path("killed/stage.json").exists()
    again = evaluate(inputs, SMALL, output=Path("killed"))
    done = [key for replies in batches for key in replies]
    assert len(done) == len(set(done)) == 18  # nothing was answered twice
    columns = ["setting", "id", "reply", "correct", "token_ratio"]
    assert pd.read_csv(again / "tables" / "answers.csv")[columns].equals(
        pd.read_csv(result / "tables" / "answers.csv")[columns]
    )
    assert evaluate(inputs, SMALL, output=Path("killed")) == again  # adopted


def test_checkpoint_questions_and_pictures_are_inputs(files: Path, result: Path) -> None:
    stamp = json.loads((result / "stage.json").read_text())
    assert set(stamp["inputs"]) == {
        *("checkpoint", "questions", "media/0.png", "media/1.png", "media/2.png")
    }
    (base,) = (files / "results/own/base").glob("ckpt__*")
    taken = set(json.loads((base / "stage.json").read_text())["inputs"])
    assert {"source/model.safetensors", "source/config.json", "source/tokenizer.json"} <= taken


@pytest.mark.parametrize(
    ("change", "values", "named"),
    [
        ({"model": "nowhere/ckpt/x"}, {}, "neither a folder nor OWNER/NAME"),
        ({"questions": Path("none.jsonl")}, {}, "there is no such file"),
        ({"media": Path("none")}, {}, "there is no such folder"),
        ({"device": "tpu"}, {}, "device"),
        ({"max_pixels": 0}, {}, "max_pixels"),
        ({}, {"retention_p": [2.0]}, "retention_p = 2.0"),
        ({}, {"methods": ["zipvll"]}, "did you mean zipvl"),
        ({}, {"methods": ["fastv=x"]}, "needs a number"),
        ({}, {"methods": ["nsa"]}, "weights that this model lacks"),
        ({}, {"methods": ["videonsa"]}, "weights that this model lacks"),
        ({}, {"methods": ["fastv"], "retention_p": [0.9]}, "none of the methods has a threshold"),
        ({}, {"prompt": "poem"}, "prompt_template"),
        ({}, {"batch": 0}, "batch"),
    ],
)
def test_bad_input_is_one_error_before_work(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, change: dict, values: dict, named: str
) -> None:
    for module in (evaluation, stages):
        monkeypatch.setattr(module, "run_stage", lambda *_, **__: pytest.fail("a stage ran"))
    given = {**vars(inputs), **change}
    with pytest.raises(SparsityForcingError, match=named):
        evaluate(Inputs(**given), Comparison(**values))


def test_unusable_questions_are_refused_or_left_out(files: Path, tmp_path: Path) -> None:
    bad = json.dumps({"question": "Where?", "answer": "there", "image": "none.png"})
    with_bad_row = tmp_path / "bad.jsonl"
    with_bad_row.write_text("\n".join([(files / "q.jsonl").read_text(), bad]))
    job = Job(tmp_path / "out", tmp_path / "state", SilentTracker(tmp_path))
    for folder in ("out/tables", "state"):
        (tmp_path / folder).mkdir(parents=True)
    inputs = Inputs(str(files), with_bad_row, files / "photos")
    values = {
        **{"model": "m", "settings": [{"method": "full"}, {"method": "zipvl"}], "seed": 0},
        **{"batch": 1, "max_new_tokens": 1, "prompt_template": "short", "pictures": 0},
        **{"correctness_cutoff": 0.5, "max_reject_share": 0.0, "vision": stages.vision_of(inputs)},
        **{"runtime": {"device": "cpu", "dtype": "float32"}, "checkpoint": files / "ckpt"},
        **{"questions": with_bad_row, "media": files / "photos", "output": tmp_path / "result"},
    }
    with pytest.raises(DataError, match=r"1 of 7.*missing media.*--max-reject-share"):
        questions.usable_rows(questions.Parameters(**values), job)
    some = questions.Parameters(**{**values, "max_reject_share": 0.2})
    assert [row.id for row in questions.usable_rows(some, job)] == list("123456")
    assert list(pd.read_csv(tmp_path / "out/tables/rejects.csv")["number"]) == [7]
