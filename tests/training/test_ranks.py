"""One group on one rank and on two gives the same step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

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


def step(base: Path, rows: list[Row], folder: Path) -> dict[str, float]:
    """Two steps of one question each, with the pathwise term; figures of the second."""
    p = parameters(train_steps=2, questions_per_step=1, save_every=99, objective="pathwise")
    log = Log()
    trainer = assemble(p, base, rows, folder, log, Progress("t", 2)).trainer
    trainer.train()
    return log.history[-1][1] if trainer.is_world_process_zero() else {}


def test_group_of_four_on_two_ranks(base: Path, rows: list[Row], tmp_path: Path) -> None:
    """gloo, two rollouts on each rank: the same answers, rewards, loss and gradient norm."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
        "--master-addr=127.0.0.1", f"--master-port={free_port()}",
        __file__, str(base), rows[0].data_root, str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)
    ours = json.loads((tmp_path / "figures.json").read_text())
    expected = step(base, rows, tmp_path / "one")
    for name in ("reward", "token_ratio", "efficiency", "gate", "completion_tokens"):
        assert ours[name] == pytest.approx(expected[name], abs=1e-6), name
    for name in ("loss", "grad_norm", "kl", "entropy"):
        assert ours[name] == pytest.approx(expected[name], rel=1e-4), name
    assert ours["reward_std"] > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = [Path(argument) for argument in sys.argv[1:]]
    own = given[2] / os.environ["RANK"]
    figures = step(given[0], write_rows(own), given[2] / "two")
    if figures:
        (given[2] / "figures.json").write_text(json.dumps(figures))
