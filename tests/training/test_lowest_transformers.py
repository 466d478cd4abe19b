"""Training on the lowest transformers that its extra allows, beside the installed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP = """
import json, sys
from pathlib import Path
import transformers
from tiny_world import Log, parameters, write_rows
from sf.progress import Progress
from sf.training.run import assemble

base, folder = map(Path, sys.argv[1:])
log = Log()
given = parameters(steps=1, save_every=99)
rows = write_rows(folder / "rows")
assemble(given, base, rows, folder / "state", log, Progress("t", 1)).trainer.train()
print(json.dumps([transformers.__version__, log.history[0][1]]))
"""
FIGURES = ("loss", "grad_norm", "kl", "reward", "token_ratio", "completion_tokens")


def lowest() -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = extras["optional-dependencies"]["train"]
    (floor,) = [line for line in wanted if line.startswith("transformers>=")]
    return floor.removeprefix("transformers>=").partition(",")[0]


def figures(base: Path, folder: Path, *first: Path) -> tuple[str, dict[str, float]]:
    """The version that was imported, and the figures of a step."""
    paths = [*first, ROOT, Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", STEP, str(base), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    version, values = json.loads(done.stdout.splitlines()[-1])
    return version, {name: values[name] for name in FIGURES}


def test_a_step_gives_the_same_figures(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "lowest"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    got = subprocess.run(
        [*command, f"transformers=={lowest()}.0"], capture_output=True, text=True, check=False
    )
    if got.returncode:
        pytest.skip(f"transformers {lowest()} cannot be installed: {got.stderr[-200:]}")
    version, values = figures(base, tmp_path / "low", target)
    assert version == f"{lowest()}.0"
    _, expected = figures(base, tmp_path / "now")
    assert values == pytest.approx(expected, rel=1e-5)
