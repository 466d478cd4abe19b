"""The code of a stage is what it imports; the packages that count are stated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sf.jobs import STAGES
from sf.result_key import packages
from sf.result_key.imports import LOOKS, PACKAGE, RUNNER, module_file, stage_code

ROOT = PACKAGE.parent
LOADED = """
import importlib, json, os, sys
import sf
import torch, transformers, trl, lmms_eval, datasets, matplotlib.pyplot, pandas, mlflow, peft
for stage, names in json.load(sys.stdin).items():
    sys.stdout.flush()
    if os.fork() == 0:
        for name in names:
            importlib.import_module(name)
        loaded = sorted(name for name in sys.modules if name.split(".")[0] == "sf")
        print(json.dumps([stage, loaded]), flush=True)
        os._exit(0)
    os.wait()
"""
CHANGE_EACH = """
import json, sys
from pathlib import Path
from sf.jobs import STAGES
from sf.result_key.imports import PACKAGE, code_of

def digests():
    return {s: code_of(PACKAGE / "stages" / f"{s}.py").digest for s in STAGES}

before = digests()
for file in PACKAGE.rglob("*.py"):
    file.write_text(file.read_text().replace("\\n\\n\\n", "\\n# A comment.\\n\\n\\n"))
assert digests() == before
for name in json.load(sys.stdin):
    file = Path(name)
    content = file.read_bytes()
    file.write_bytes(content + b"\\nMORE = 1\\n")
    after = digests()
    print(json.dumps([name, [stage for stage in STAGES if before[stage] != after[stage]]]))
    file.write_bytes(content)
"""


def dotted(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def run(code: str, given: object, folder: Path) -> list[list[Any]]:
    """The JSON lines that a Python process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('["')]


def test_a_stage_s_code_is_closed_under_import() -> None:
    """Importing every module of a closure imports all of it and nothing else that counts."""
    closures = {
        stage: sorted(dotted(name) for name in stage_code(stage).modules if name.endswith(".py"))
        for stage in STAGES
    }
    lines = run(LOADED, {**closures, "runner": list(RUNNER), "looks": list(LOOKS)}, ROOT)
    loaded = {stage: set(names) for stage, names in lines}
    assert loaded.keys() == {*STAGES, "runner", "looks"}
    for stage in STAGES:
        runner = loaded["runner"] | (set() if stage == "report" else loaded["looks"])
        assert set(closures[stage]) <= loaded[stage]
        assert loaded[stage] - runner <= set(closures[stage]), stage


@pytest.mark.parametrize("stage", STAGES)
def test_every_package_that_a_stage_imports_is_stated(stage: str) -> None:
    stated = packages.COUNTED.keys() | packages.UNCOUNTED.keys()
    assert stage_code(stage).imported <= stated
    assert not packages.COUNTED.keys() & packages.UNCOUNTED.keys()


def test_all_data_of_the_package_count_for_some_stage() -> None:
    data = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in str(path)
    }
    assert data
    assert data <= {name for stage in STAGES for name in stage_code(stage).modules}


def test_boundaries_between_stages_hold() -> None:
    """Modules that would cost a training run without affecting one."""
    trained = stage_code("train").modules
    for part in ("sf/report/", "sf/evaluation/", "sf/baselines/", "sf/profiling/", "sf/mini/"):
        assert {name for name in trained if name.startswith(part)} <= {"sf/report/__init__.py"}
    assert not {"sf/errors.py", "sf/config.py", "sf/jobs.py", "sf/cli.py"} & trained.keys()
    assert {"sf/training/trainer.py", "sf/attention/layer.py"} <= trained.keys()
    assert "sf/plotting.py" in stage_code("report").modules
    assert "sf/baselines/minference.py" in stage_code("evaluate").modules  # by its name only
    assert "trl" in stage_code("train").packages
    assert "trl" not in stage_code("evaluate").packages
    assert "lmms_eval" not in stage_code("train").packages


def test_what_does_not_count_exists() -> None:
    for name in [*RUNNER, *LOOKS]:
        assert module_file(name) is not None, name


def test_versions_count_to_the_stated_part(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.13.1+cu128", "pandas": "3.1.4", "pillow": "13.0.0"}
    monkeypatch.setattr(packages.metadata, "version", installed.__getitem__)
    count = packages.counted_version.__wrapped__
    assert (count("torch"), count("pandas"), count("PIL")) == ("2.13", "3", "13")

    def absent(name: str) -> str:
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "version", absent)
    assert count("flash_attn") == packages.ABSENT


def test_a_change_reaches_the_stages_that_import_it_and_a_comment_none(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "sf", ignore=shutil.ignore_patterns("__pycache__"))
    expected = {
        "sf/training/monitor.py": {"train"},
        "sf/profiling/roofline.py": {"profile"},
        "sf/report/build.py": {"report"},
        "sf/report/published.csv": {"report", "table"},
        "sf/report/page.html.jinja": {"report", "table"},
        "sf/plotting.py": {"report"},
        "sf/baselines/minference.py": {"evaluate", "calibrate"},
        "sf/errors.py": set(),
        "sf/selection/top_p.py": {"base", "calibrate", "train", "evaluate", "profile"},
    }
    changed = run(CHANGE_EACH, list(expected), tmp_path)
    assert {name: set(stages) for name, stages in changed} == expected
