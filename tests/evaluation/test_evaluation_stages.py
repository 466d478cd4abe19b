"""The stages `benchmarks` and `evaluate`, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from picture_rows import picture_row
from scripted import ANSWERING, BOUNDS, VISION

from sf.data.manifest import write_manifest
from sf.errors import ConfigError
from sf.evaluation.benchmarks import BENCHMARKS, benchmark_named
from sf.evaluation.source import read_source
from sf.jobs import Job
from sf.mini.scenes import render, sample_scene
from sf.sections import Benchmarks
from sf.stages import benchmarks, evaluate
from sf.tracking import Tracker

SUITE = "image"


def _job(folder: Path) -> Job:
    for name in ("out", "state"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Job(out=folder / "out", state=folder / "state", tracker=Tracker(folder))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the `benchmarks` stage."""
    job = _job(tmp_path_factory.mktemp("benchmarks"))
    parameters = benchmarks.Parameters(
        benchmarks=Benchmarks(source="synthetic", samples=2, suites=["all"]),
        vision=VISION,
        seed=0,
        output=job.out,
    )
    benchmarks.run(parameters, job)
    return job.out


def _arguments(checkpoint: Path, source: Path, output: Path, **changed: Any) -> dict[str, Any]:
    return {
        "vision": BOUNDS,
        "runtime": {"device": "cpu", "dtype": "float32"},
        "evaluate": {"retention_p": 0.9, "batch": 1},
        "answering": ANSWERING,
        "data": str(output.parent / "data"),
        "model": "tiny",
        "row": "zipvl",
        "method": "zipvl",
        "suite": SUITE,
        "seed": 0,
        "checkpoint": str(checkpoint),
        "benchmarks": str(source),
        "output": str(output),
        **changed,
    }


def test_benchmarks_stage_states_what_there_is(source: Path, tmp_path: Path) -> None:
    table = pd.read_csv(source / "tables" / "benchmarks.csv")
    assert list(table["benchmark"].unique()) == [col.name for col in BENCHMARKS]
    assert dict(zip(table["task"], table["rows"], strict=True))["mme"] == 56
    assert set(table["max_new_tokens"]) == {8}
    assert read_source(source).home_path(source, tmp_path) == source / "home"


def test_only_what_the_suites_need_is_prepared(tmp_path: Path) -> None:
    job = _job(tmp_path)
    suites = ["chartqa", "tempcompass"]
    given = Benchmarks(source="synthetic", samples=2, suites=suites)
    benchmarks.run(
        benchmarks.Parameters(benchmarks=given, vision=VISION, seed=0, output=job.out), job
    )
    table = pd.read_csv(job.out / "tables" / "benchmarks.csv")
    assert list(table["benchmark"].unique()) == suites
    assert {path.name for path in (job.out / "home").iterdir()} == {"hub", "tempcompass"}


def test_stand_ins_of_a_seed_are_the_same_bytes(source: Path, tmp_path: Path) -> None:
    job = _job(tmp_path)
    benchmarks.run(
        benchmarks.Parameters(
            benchmarks=Benchmarks(source="synthetic", samples=2, suites=["all"]),
            vision=VISION,
            seed=0,
            output=job.out,
        ),
        job,
    )
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    assert len(files) > 30
    for name in files:
        assert (job.out / name).read_bytes() == (source / name).read_bytes(), name


_RUN = """
import json, sys
from pathlib import Path
from sf.jobs import Job
from sf.mini.scenes import render, sample_scene
from sf.stages import evaluate
from sf.tracking import Tracker
folder = Path(sys.argv[2])
job = Job(out=folder / "out", state=folder / "state", tracker=Tracker(folder))
evaluate.run(evaluate.Parameters(**json.loads(sys.argv[1])), job)
"""


def _kill_after_records(command: list[str], records: Path) -> None:
    """Start a run and kill it after its first answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (records.is_file() and records.stat().st_size > 2000):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_and_called_again_it_ends_with_the_same_tables(
    checkpoints: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    values = _arguments(checkpoints["qwen2_5_vl"], source, tmp_path / "result")
    resumed, whole = _job(tmp_path / "resumed"), _job(tmp_path / "whole")
    records = resumed.state / "records" / "rank0.jsonl"
    command = [sys.executable, "-c", _RUN, json.dumps(values), str(tmp_path / "resumed")]
    _kill_after_records(command, records)
    before = len(records.read_text().splitlines())
    for job in (resumed, whole):
        evaluate.run(evaluate.Parameters(**values), job)
    assert 2 < before < len(records.read_text().splitlines())
    for name in ("scores", "tasks", "layers"):
        path = Path("tables") / f"{name}.csv"
        assert (resumed.out / path).read_bytes() == (whole.out / path).read_bytes()

    scores = pd.read_csv(whole.out / "tables" / "scores.csv")
    assert list(scores["benchmark"]) == [c.name for c in BENCHMARKS if c.kind == "image"]
    single = scores["low"].isna()  # so few samples that categories have one each
    assert list(scores["benchmark"][single]) == ["mmstar"]
    spans = scores[~single]
    assert ((spans["low"] <= spans["score"]) & (spans["score"] <= spans["high"])).all()
    assert ((scores["token_ratio"] > 0) & (scores["token_ratio"] < 1)).all()
    layers = pd.read_csv(whole.out / "tables" / "layers.csv")
    means = layers.groupby("benchmark", sort=False)["token_ratio"].mean().to_numpy()
    assert means == pytest.approx(scores["token_ratio"].to_numpy(), abs=1e-5)
    samples = [json.loads(line) for line in (whole.out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == scores["samples"].sum()
    facts = json.loads((whole.out / "results.json").read_text())
    assert (facts["value"], facts["lmms_eval"]) == (0.9, "0.7.3")
    assert facts["scores"][0]["scale"] == benchmark_named("mme").scale


def test_a_method_is_evaluated_at_the_value_that_gives_the_asked_ratio(
    checkpoints: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for at in range(3):
        render(sample_scene(np.random.default_rng(at), rows=5, cols=6)).save(data / f"{at}.png")
        rows.append(picture_row(data, f"{at}.png"))
    write_manifest(data / "calibration.parquet", rows, data)
    job = _job(tmp_path)
    changed = {"method": "threshold", "row": "threshold", "suite": "chartqa"}
    own = {"retention_p": 0.9, "batch": 1, "match": {"token_ratio": 0.7, "tolerance": 0.02}}
    values = _arguments(
        checkpoints["qwen2_5_vl"], source, tmp_path / "result", evaluate=own, **changed
    )
    evaluate.run(evaluate.Parameters(**values), job)
    (line,) = pd.read_csv(job.out / "tables" / "matched.csv").to_dict("records")
    assert (line["method"], line["hyperparameter"], line["target"]) == (
        "threshold",
        "threshold",
        0.7,
    )
    assert line["reached"]
    assert abs(line["token_ratio"] - 0.7) <= 0.02
    facts = json.loads((job.out / "results.json").read_text())
    assert facts["value"] == pytest.approx(line["value"], rel=1e-4)
    assert facts["value"] != 0.001  # the default
    probes = pd.read_csv(job.out / "tables" / "match_probes.csv")
    assert len(probes) == line["measurements"]
    with pytest.raises(ConfigError, match=r"evaluate\.match searches the value itself"):
        evaluate.run(evaluate.Parameters(**{**values, "value": 0.5}), _job(tmp_path / "both"))
