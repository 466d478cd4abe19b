"""One group on one rank and on two gives the same step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import Log, parameters, write_rows

from sf.data.manifest import Row
from sf.progress import Progress
from sf.training.run import assemble


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


RUNS: dict[str, dict[str, Any]] = {
    "sparsity_forcing": {"questions_per_step": 1},
    "pathwise": {"questions_per_step": 1},
    "zipvl_sft": {"questions_per_step": 1},
    "sharpness": {"questions_per_step": 2, "sharpness_weight": 2.0},
}


def step(base: Path, rows: list[Row], folder: Path, objective: str) -> dict[str, float]:
    """Two steps; figures of the second."""
    p = parameters(train_steps=2, save_every=99, objective=objective, **RUNS[objective])
    log = Log()
    trainer = assemble(p, base, rows, folder, log, Progress("t", 2)).trainer
    trainer.train()
    return log.history[-1][1] if trainer.is_world_process_zero() else {}


@pytest.fixture(scope="module")
def on_two_ranks(
    base: Path, rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, float]]:
    """gloo, half of a step on each rank; objective -> figures."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
        "--master-addr=127.0.0.1", f"--master-port={free_port()}",
        __file__, str(base), rows[0].data_root, str(folder),
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)
    found: dict[str, dict[str, float]] = json.loads((folder / "figures.json").read_text())
    return found


@pytest.mark.parametrize("objective", ["sparsity_forcing", "pathwise"])
def test_group_of_four_on_two_ranks(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    objective: str,
    on_two_ranks: dict[str, dict[str, float]],
) -> None:
    """The same answers, rewards, loss and gradient norm, prompts shared with the loss or not."""
    ours = on_two_ranks[objective]
    expected = step(base, rows, tmp_path, objective)
    for name in ("reward", "token_ratio", "efficiency", "gate", "completion_tokens"):
        assert ours[name] == pytest.approx(expected[name], abs=1e-6), name
    for name in ("loss", "grad_norm", "kl", "entropy"):
        assert ours[name] == pytest.approx(expected[name], rel=1e-4), name
    assert ours["reward_std"] > 0


@pytest.mark.parametrize("objective", ["zipvl_sft", "sharpness"])
def test_given_answers_on_two_ranks(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    objective: str,
    on_two_ranks: dict[str, dict[str, float]],
) -> None:
    ours, expected = on_two_ranks[objective], step(base, rows, tmp_path, objective)
    names = ["loss", "grad_norm", "token_ratio", "retention_p"]
    names += ["sharpness"] if objective == "sharpness" else []
    for name in names:
        assert ours[name] == pytest.approx(expected[name], rel=1e-4), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = [Path(argument) for argument in sys.argv[1:]]
    own = given[2] / os.environ["RANK"]
    manifest = write_rows(own)
    figures = {name: step(given[0], manifest, given[2] / name, name) for name in RUNS}
    if os.environ["RANK"] == "0":
        (given[2] / "figures.json").write_text(json.dumps(figures))
