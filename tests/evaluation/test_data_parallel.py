"""The stage `evaluate` in two processes under torchrun: as in one, killed, and with bad data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted import ANSWERING, BOUNDS, VISION

from sf.evaluation.source import prepare_source
from sf.layout import STAMP

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TABLES = ("scores", "tasks", "layers")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the `benchmarks` stage."""
    folder = tmp_path_factory.mktemp("benchmarks")
    prepare_source("synthetic", 3, 0, ["video"], VISION, folder, folder)[0].write(folder)
    (folder / STAMP).write_text('{"files": {}}')
    return folder


def _start(checkpoint: Path, source: Path, folder: Path, *launch: str) -> subprocess.Popen[str]:
    """The stage on the video benchmarks, into `folder / "result"`; odd numbers of rows."""
    folder.mkdir(exist_ok=True)
    values = {
        **{"model": "tiny", "row": "zipvl", "method": "zipvl", "seed": 0},
        **{"suite": "video", "checkpoint": checkpoint, "benchmarks": source, "data": source},
        **{"output": folder / "result", "evaluate": {"retention_p": 0.8, "batch": 2}},
        **{"answering": ANSWERING, "vision": BOUNDS},
        "runtime": {"device": "cpu", "dtype": "float32"},
    }
    (folder / "job.json").write_text(json.dumps(values, default=str))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "sf.cli", "run", "evaluate", "--config", "job.json"],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def _content(folder: Path) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The tables, and the samples without values that depend on a clock."""
    result = folder / "result"
    tables = [(result / "tables" / f"{name}.csv").read_bytes() for name in TABLES]
    lines = [json.loads(line) for line in (result / "samples.jsonl").read_text().splitlines()]
    timed = ("seconds", "batch", "source")
    return tables, [{k: v for k, v in line.items() if k not in timed} for line in lines]


def _records(folder: Path) -> dict[str, list[str]]:
    records = folder / ".result.work" / "state" / "records"
    return {path.name: path.read_text().splitlines() for path in sorted(records.iterdir())}


@pytest.fixture(scope="module")
def alone(
    checkpoints: dict[str, Path], source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The results of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    _finish(_start(checkpoints["qwen2_5_vl"], source, folder))
    return folder


def test_two_processes_give_the_same_tables_and_samples(
    checkpoints: dict[str, Path], source: Path, alone: Path, tmp_path: Path
) -> None:
    output = _finish(_start(checkpoints["qwen2_5_vl"], source, tmp_path, *TWO))
    assert output.count("evaluate: done") == 1
    assert _content(tmp_path) == _content(alone)
    rows = [len(_content(alone)[1]), len({line["doc_id"] for line in _content(alone)[1]})]
    assert rows[0] % 2 or rows[1] % 2  # one process has to answer a row twice
    stamps = [json.loads((f / "result" / STAMP).read_text())["files"] for f in (alone, tmp_path)]
    assert set(stamps[0]) == set(stamps[1])


def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    checkpoints: dict[str, Path], source: Path, alone: Path, tmp_path: Path
) -> None:
    process = _start(checkpoints["qwen2_5_vl"], source, tmp_path, *TWO)
    written = tmp_path / ".result.work" / "state" / "records" / "rank1.jsonl"
    until = time.monotonic() + 200
    while not written.is_file() or written.stat().st_size < 2000:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    ranks = {rank: child for child in children if (rank := child.environ().get("RANK"))}
    ranks["1"].send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode
    assert not psutil.wait_procs(list(ranks.values()), timeout=20)[1]
    assert not (tmp_path / "result").exists()
    before = _records(tmp_path)
    assert sorted(before) == ["rank0.jsonl", "rank1.jsonl"]  # each process its own file

    _finish(_start(checkpoints["qwen2_5_vl"], source, tmp_path, *TWO))
    assert _content(tmp_path) == _content(alone)
    # Answered questions were not repeated: their time is still that of the first call.
    lines = (tmp_path / "result" / "samples.jsonl").read_text().splitlines()
    times = {(line["task"], line["doc_id"]): line["seconds"] for line in map(json.loads, lines)}
    old = [json.loads(line) for lines in before.values() for line in lines if line.endswith("}")]
    assert 0 < len(old) < len(times)
    assert [times[record["task"], record["doc_id"]] for record in old] == [
        record["seconds"] for record in old
    ]


def test_a_failure_on_one_process_does_not_take_the_other_benchmarks_with_it(
    checkpoints: dict[str, Path], source: Path, alone: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(source, tmp_path / "damaged"))
    video = sorted((damaged / "home" / "egoschema" / "videos").iterdir())[1]
    whole = video.read_bytes()
    video.write_bytes(whole[:300])
    process = _start(checkpoints["qwen2_5_vl"], damaged, tmp_path, *TWO)
    output, _ = process.communicate(timeout=300)
    assert process.returncode
    assert "1 of 7 benchmarks failed" in output
    assert f"in benchmark egoschema: video = '{video}'" in output.replace("\n", "")
    assert not (tmp_path / "result").exists()
    answered = {json.loads(line)["task"] for f in _records(tmp_path).values() for line in f}
    assert {"mlvu_dev", "tempcompass_caption_matching"} <= answered  # before it and after it
    logs = {path.name for path in (tmp_path / ".result.work" / "state").glob("*.log")}
    assert logs == {"lmms_eval0.log", "lmms_eval1.log"}
    video.write_bytes(whole)
    _finish(_start(checkpoints["qwen2_5_vl"], damaged, tmp_path, *TWO))
    assert _content(tmp_path) == _content(alone)
