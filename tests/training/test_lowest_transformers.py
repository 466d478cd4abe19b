"""Training on the lowest transformers version that its extra allows, and on the installed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny_world import Log, parameters, write_rows

from sf.progress import Progress
from sf.training.run import assemble

ROOT = Path(__file__).parents[2]
FIGURES = ("loss", "grad_norm", "kl", "reward", "token_ratio", "completion_tokens")


def lowest() -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = extras["optional-dependencies"]["train"]
    (floor,) = [line for line in wanted if line.startswith("transformers>=")]
    return floor.removeprefix("transformers>=").partition(",")[0]


def figures(base: Path, folder: Path) -> dict[str, float]:
    """Of the first step."""
    rows, log = write_rows(folder / "rows"), Log()
    p = parameters(steps=1, save_every=99)
    assemble(p, base, rows, folder / "state", log, Progress("t", 1)).trainer.train()
    return {name: log.history[0][1][name] for name in FIGURES}


def test_a_step_gives_the_same_figures(base: Path, tmp_path: Path) -> None:
    wanted, target = f"transformers=={lowest()}.0", tmp_path / "lowest"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    got = subprocess.run([*pip, "--target", target, wanted], capture_output=True, text=True)
    if got.returncode and "connection broken" in got.stderr:
        pytest.skip("no package index can be reached")
    assert not got.returncode, got.stderr[-400:]
    paths = map(str, (target, ROOT, Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__, str(base), str(tmp_path / "low")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    version, values = json.loads(done.stdout.splitlines()[-1])
    assert version == f"{lowest()}.0"
    assert values == pytest.approx(figures(base, tmp_path / "now"), rel=1e-5)


if __name__ == "__main__":
    import transformers

    print(json.dumps([transformers.__version__, figures(*map(Path, sys.argv[1:]))]))
