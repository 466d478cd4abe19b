"""One job in several processes: gloo on the CPU, started as the engines start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from sf.atomic_files import write_json
from sf.config import Params, Resources
from sf.errors import ConfigError
from sf.layout import STAMP, work_folder
from sf.result_key.contents import file_digests
from sf.scales import scale_values
from sf.training.checkpoints import SEAL
from sf.validation import validated
from workflow.jobs import JobSpec, jobs, launcher, write_configs
from workflow.slurm import on_every_node

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "training"))

ALONE = {"cpus": 1, "mem_gib": 2, "gpus": 0, "hours": 0.5}
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


def resources(**changed: int) -> Resources:
    return validated(Resources, {**ALONE, **changed})


def test_only_stages_that_can_are_started_in_several_processes() -> None:
    words = launcher("train", resources(gpus=4))
    assert words[:2] == ["-m", "torch.distributed.run"]
    assert {"--standalone", "--nproc-per-node=4"} <= set(words)
    assert launcher("evaluate", resources(gpus=4))
    assert launcher("calibrate", resources(gpus=4)) == []
    for gpus in (0, 1):
        assert launcher("train", resources(gpus=gpus)) == []
        words = launcher("train", resources(gpus=gpus, nodes=3))
        assert {"--nnodes=3", "--nproc-per-node=1"} <= set(words)


def test_only_stages_that_can_are_given_several_nodes() -> None:
    given = params(1)
    given["resources"]["train"]["nodes"] = 2
    assert jobs(validated(Params, given))
    given["resources"]["base"] = {**ALONE, "nodes": 2}
    with pytest.raises(ConfigError, match=r"resources\.base\.nodes.*one process"):
        jobs(validated(Params, given))


def test_several_nodes_without_slurm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"resources\.train\.nodes.*not a Slurm job"):
        on_every_node(resources(nodes=2), "resources.train.nodes")


def params(processes: int, **row: Any) -> dict[str, Any]:
    """The smoke scale with another number of processes of one stage."""
    given = scale_values("smoke", ROOT / "params")
    del given["base"]["tiny-qwen2-vl"]
    given["train"] |= {"steps": 4, "save_every": 2}
    given["grpo"]["reward_gate"] = False
    given["rollouts"] |= {"retention_p": [0.5, 0.9], "group_size": 2}
    given["objectives"]["sparsity_forcing"] |= row
    for stage in ("train", "calibrate"):
        given["resources"][stage] = {**ALONE, "gpus": processes}
    return given


def study(folder: Path, given: dict[str, Any]) -> Path:
    """A working directory with finished results of the stages before training."""
    from tiny_world import build, write_rows

    from sf.data.manifest import write_manifest

    base = folder / "results/smoke/base/tiny-qwen2.5-vl"
    data = folder / "results/smoke/prepare"
    for part in (base, data):
        part.mkdir(parents=True)
    rows = write_rows(folder / "media")
    for piece in build("qwen2_5_vl", rows):
        piece.save_pretrained(base)
    for split in ("train", "calibration"):
        write_manifest(data / f"{split}.parquet", rows, folder / "media")
    for part in (base, data):
        write_json(part / STAMP, {"files": file_digests(part, work_folder(part))})
    with (folder / "params.yaml").open("w") as stream:
        YAML().dump(given, stream)
    write_configs(jobs(validated(Params, given)), folder)
    return folder


def job(given: dict[str, Any], name: str = "train") -> JobSpec:
    return next(spec for spec in jobs(validated(Params, given)) if spec.stage.name == name)


def start(folder: Path, spec: JobSpec) -> subprocess.Popen[str]:
    call = f"exec {sys.executable} -m workflow.launch {spec.command}"
    environment = {**ENVIRONMENT, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.Popen(
        call,
        shell=True,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(folder: Path, spec: JobSpec) -> str:
    process = start(folder, spec)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def wait_for(process: subprocess.Popen[str], path: Path) -> dict[str, psutil.Process]:
    """The job's ranks, once `path` is there."""
    until = time.monotonic() + 200
    while not path.is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    return {rank: c for c in children if (rank := c.environ().get("RANK"))}


def figures(folder: Path, spec: JobSpec) -> dict[int, dict[str, float]]:
    lines = (folder / spec.output / "history.jsonl").read_text().splitlines()
    return {entry["step"]: entry for entry in map(json.loads, lines)}


def weights(folder: Path, spec: JobSpec) -> bytes:
    return (folder / spec.output / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished training in two processes."""
    folder = study(tmp_path_factory.mktemp("two"), params(2))
    assert "train: done" in finished(folder, job(params(2)))
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one_does(two: Path, tmp_path: Path) -> None:
    one, spec = study(tmp_path / "one", params(0)), job(params(2))
    finished(one, spec)
    ours, expected = figures(two, spec), figures(one, spec)
    assert list(ours) == list(expected) == [1, 2, 3, 4]
    # The first step's answers are the same; its rounding then moves the later ones apart.
    for name in ("reward", "token_ratio", "retention_p", "loss", "grad_norm", "kl"):
        assert ours[1][name] == pytest.approx(expected[1][name], rel=1e-3, abs=1e-6), name
    stamps = [json.loads((f / spec.output / STAMP).read_text()) for f in (two, one)]
    assert set(stamps[0]["files"]) == set(stamps[1]["files"])
    assert stamps[0]["command"] == stamps[1]["command"] == spec.command
    # Both ranks are told that there is nothing to do.
    said = finished(two, spec)
    assert said.count("train: up to date") == 1


@pytest.fixture(scope="module")
def two_sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with divided weights."""
    given = params(2, train={"sharding": "fsdp"})
    folder = study(tmp_path_factory.mktemp("sharded"), given)
    assert "train: done" in finished(folder, job(given))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "victim"),
    [("none", "rank 1"), ("none", "torchrun"), ("none", "all"), ("fsdp", "rank 1"),
     ("fsdp", "all")],
)  # fmt: skip
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    request: pytest.FixtureRequest, tmp_path: Path, sharding: str, victim: str
) -> None:
    whole = request.getfixturevalue("two" if sharding == "none" else "two_sharded")
    given = params(2, train={"sharding": sharding})
    spec, folder = job(given), study(tmp_path / "killed", given)
    process = start(folder, spec)
    work = (folder / spec.output).with_name(f".{Path(spec.output).name}.work")
    ranks = wait_for(process, work / "state" / "checkpoints" / "checkpoint-2" / SEAL)
    assert sorted(ranks) == ["0", "1"]
    victims = {"rank 1": [ranks["1"]], "torchrun": [process], "all": [process, *ranks.values()]}
    for one in victims[victim]:
        one.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode
    _, alive = psutil.wait_procs(list(ranks.values()), timeout=20)
    assert not alive
    if victim == "rank 1":
        assert "Signal 9 (SIGKILL)" in said
        assert "rank      : 1" in said
    assert not (folder / spec.output).exists()
    assert "train: done" in finished(folder, spec)
    assert weights(folder, spec) == weights(whole, spec)


@pytest.mark.slow
def test_an_error_on_a_rank_is_shown_with_its_rank(tmp_path: Path) -> None:
    given = params(2, train={"questions_per_step": 1}, retention_p=[0.5, 0.7, 0.9], group_size=3)
    folder = study(tmp_path / "odd", given)
    process = start(folder, job(given))
    said, _ = process.communicate(timeout=200)
    assert process.returncode
    assert "error on rank" in said
    assert "divide over 2 ranks" in said
    words = job(given, "calibrate").command
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
           "-m", "sf.cli", *words.split()[1:]]  # fmt: skip
    found = subprocess.run(run, cwd=folder, env=ENVIRONMENT, text=True, capture_output=True)
    assert found.returncode
    assert "cannot run in 2 processes" in found.stderr
