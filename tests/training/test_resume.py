"""A killed run ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
from pickled import Payload
from tiny_world import Log, parameters, write_rows

from sf.attention.trained import SPARSITY_FILE, TrainedAttention, record_of
from sf.data.manifest import Row
from sf.data.prompts import Template, question_text
from sf.errors import DataError
from sf.interruption import JobInterrupted, listening
from sf.models import load_model, load_processor
from sf.training.checkpoints import SEAL, seal
from sf.training.dataset import question_order, templates_of, training_set
from sf.training.objectives import OBJECTIVES
from sf.training.run import train


def run(base: Path, rows: list[Row], folder: Path, objective: str) -> dict[str, torch.Tensor]:
    p, note = parameters(objective=objective), {"model": "tiny", "objective": objective}
    train(p, base, rows, folder / "state", folder / "out", Log(), note)
    return dict(load_model(folder / "out").state_dict())


@pytest.fixture(scope="module", params=["sparsity_forcing", "zipvl_sft"])
def objective(request: pytest.FixtureRequest) -> str:
    """One that samples answers and one that learns given ones."""
    return str(request.param)


@pytest.fixture(scope="module")
def uninterrupted(
    base: Path, rows: list[Row], tmp_path_factory: pytest.TempPathFactory, objective: str
) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(base, rows, folder, objective)


def kill_between_checkpoints(base: Path, rows: list[Row], folder: Path, objective: str) -> None:
    """Start this file's run in another process, and kill it after its first checkpoint."""
    words = [str(base), str(rows[0].data_root), str(folder), objective]
    path = os.pathsep.join(str(Path(__file__).parents[at]) for at in range(3))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, __file__, *words], env=environment)
    try:
        until = time.monotonic() + 300
        while not (folder / "state" / "checkpoint-2" / SEAL).is_file():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "out" / "model.safetensors").exists()


def test_killed_run_goes_on_to_the_same_weights(
    base: Path, rows: list[Row], tmp_path: Path, objective: str, uninterrupted: tuple[Path, dict]
) -> None:
    """kill -9 between two checkpoints, in another process."""
    kill_between_checkpoints(base, rows, tmp_path, objective)
    resumed = run(base, rows, tmp_path, objective)
    first, whole = uninterrupted
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    tables = [folder / "out" / "tables" / "completions.csv" for folder in (tmp_path, first)]
    assert tables[0].read_text() == tables[1].read_text()
    shown = pd.read_csv(tables[0], keep_default_na=False)
    assert list(shown["step"]) == [step for step in (1, 2, 3, 4) for _ in range(4)]
    assert list(shown["retention_p"][:4]) == [0.5, 0.7, 0.9, 1.0]


class WarnedLog(Log):
    """The job's time limit comes after one checkpoint and before the next."""

    def log(self, step: int, values: dict[str, float]) -> None:
        super().log(step, values)
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("near", ["signal", "limit"])
def test_a_job_near_its_limit_checkpoints_its_step_and_the_next_goes_on(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    objective: str,
    uninterrupted: tuple[Path, dict],
    near: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p, note = parameters(objective=objective), {"model": "tiny", "objective": objective}
    given = p, base, rows, tmp_path / "state", tmp_path / "out"
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    if near == "limit":
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5))
    with (
        listening(at_once=False),
        pytest.raises(JobInterrupted, match=r"after step \d of 4") as caught,
    ):
        train(*given, WarnedLog() if near == "signal" else Log(), note)
    assert caught.value.cause == "SIGUSR1"
    step = 3 if near == "signal" else 1  # step 2 is logged after its end
    assert (tmp_path / "state" / f"checkpoint-{step}" / SEAL).is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    resumed = run(base, rows, tmp_path, objective)
    _, whole = uninterrupted
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


class Interruption(Exception):
    """Any interruption of a run."""


class FailingLog(Log):
    def log(self, step: int, values: dict[str, float]) -> None:
        super().log(step, values)
        if step == 3:
            raise Interruption


@pytest.mark.parametrize(
    "changes",
    [{"retention_p": {"low": 0.0, "high": 1.0}},
     {"objective": "pathwise",
      "pathwise": {"gate": False, "target": {"token_ratio": 0.25, "dual_rate": 2.0}}},
     {"objective": "distil"}],
    ids=["uniform", "pathwise target", "distil"],
)  # fmt: skip
def test_drawn_thresholds_and_the_dual_variable_go_on(
    base: Path, rows: list[Row], tmp_path: Path, changes: dict
) -> None:
    """Interrupted after its last checkpoint: figures and weights as without interruption."""
    outcomes = []
    for name in ("whole", "parts"):
        p, out, log = parameters(**changes), tmp_path / name / "out", Log()
        given = p, base, rows, tmp_path / name / "state", out
        if name == "parts":
            with pytest.raises(Interruption):
                train(*given, FailingLog(), {"model": "tiny", "objective": "pathwise"})
        train(*given, log, {"model": "tiny", "objective": "pathwise"})
        outcomes.append((log.history[-1][1], load_model(out).state_dict()))
    (whole, weights), (parts, again) = outcomes
    for figure in ("retention_p", "token_ratio", "loss", "grad_norm", "pathwise_weight"):
        assert whole.get(figure) == parts.get(figure), figure
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert whole.get("pathwise_weight", 2.0) > 1.0


def test_damaged_checkpoint_is_passed_over(
    base: Path, rows: list[Row], tmp_path: Path, objective: str, uninterrupted: tuple[Path, dict]
) -> None:
    """A lost byte in the newest one: the run continues from the one before, to the same weights."""
    first, whole = uninterrupted
    shutil.copytree(first / "state", tmp_path / "state")
    damaged = tmp_path / "state" / "checkpoint-4" / "optimizer.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint-4 has a damaged optimizer\.pt"):
        resumed = run(base, rows, tmp_path, objective)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
)
def test_a_planted_checkpoint_runs_no_code(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    name: str,
    objective: str,
    uninterrupted: tuple[Path, dict],
) -> None:
    """A seal protects against damage, not against an attacker who can rewrite it."""
    shutil.copytree(uninterrupted[0] / "state", tmp_path / "state")
    shutil.rmtree(tmp_path / "state" / "checkpoint-4")
    planted, mark = tmp_path / "state" / "checkpoint-2", tmp_path / "executed"
    assert (planted / name).is_file()
    (planted / name).write_bytes(pickle.dumps(Payload(mark)))
    seal(planted)
    read = name != "training_args.bin"
    with pytest.raises(DataError, match="not loaded") if read else nullcontext():
        run(base, rows, tmp_path, objective)
    assert not mark.exists()


def test_pickled_weights_are_not_read(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    planted = tmp_path / "model" / "pytorch_model.bin"
    planted.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(DataError, match="it cannot be loaded"):
        load_model(tmp_path / "model")
    assert not (tmp_path / "executed").exists()


def test_run_that_was_killed_while_saving_its_result(
    base: Path, rows: list[Row], objective: str, uninterrupted: tuple[Path, dict]
) -> None:
    """All steps are done, the result is lost: the same call writes it again."""
    folder, whole = uninterrupted
    (folder / "out" / "model.safetensors").unlink()
    again = run(base, rows, folder, objective)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_result_is_a_plain_checkpoint_with_a_note(
    base: Path, objective: str, uninterrupted: tuple[Path, dict]
) -> None:
    out = uninterrupted[0] / "out"
    model, start = load_model(out), load_model(base)
    assert type(model) is type(start)
    assert model.state_dict().keys() == start.state_dict().keys()
    assert load_processor(out).tokenizer.get_vocab() == load_processor(base).tokenizer.get_vocab()
    note = json.loads((out / SPARSITY_FILE).read_text(encoding="utf-8"))
    assert (note["method"], note["value"], note["objective"]) == ("zipvl", 0.9, objective)
    assert note["provenance"] == {"model": "tiny", "objective": objective}
    assert record_of(out) == TrainedAttention("zipvl", 0.9)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "under zipvl at 0.9" in card
    assert OBJECTIVES[objective].about in card
    assert "sparsity_forcing" not in (out / "config.json").read_text(encoding="utf-8")


def test_order_is_seeded_and_covers_all_rows() -> None:
    order = question_order(5, 12, seed=1)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5] != order[5:10]
    assert question_order(5, 7, seed=1) == order[:7]
    assert question_order(5, 12, seed=2) != order


def test_training_set_is_one_epoch_of_paths(rows: list[Row]) -> None:
    data = training_set(rows, 20, 0, ["answer"] * len(rows))
    assert len(data) == 20
    order = question_order(len(rows), 20, 0)
    assert data["row"][:] == order
    media = data[0]["prompt"][0]["content"][0]
    assert media["path"] == str(rows[order[0]].media_path)
    assert data[0]["solution"] == rows[order[0]].solution


def test_a_share_of_the_rows_is_asked_for_a_bare_answer() -> None:
    templates = templates_of(2000, "answer", 0.25, seed=1)
    assert 0.2 < templates.count("short") / 2000 < 0.3
    assert set(templates) == {"short", "answer"}
    assert templates == templates_of(2000, "answer", 0.25, seed=1)
    assert templates != templates_of(2000, "answer", 0.25, seed=2)
    more = templates_of(2000, "answer", 0.5, seed=1)
    assert all(b == "short" for a, b in zip(templates, more, strict=True) if a == "short")
    assert set(templates_of(50, "answer", 0.0, seed=1)) == {"answer"}
    assert set(templates_of(50, "think_answer", 1.0, seed=1)) == {"short"}


def test_training_set_asks_each_row_in_its_own_way(rows: list[Row]) -> None:
    templates: list[Template] = ["short" if at % 2 else "answer" for at in range(len(rows))]
    data = training_set(rows, 20, 0, templates)
    for entry in data:
        text = entry["prompt"][0]["content"][1]["text"]
        assert entry["template"] == templates[entry["row"]]
        assert text == question_text(rows[entry["row"]], entry["template"])


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:4]]
    torch.set_num_threads(1)
    run(given[0], write_rows(given[1]), given[2], sys.argv[4])
