"""The code of a stage is what it imports; the packages that count are stated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sf.jobs import STAGES
from sf.result_key import packages
from sf.result_key.imports import LOOKS, PACKAGE, RUNNER, module_file, stage_code

ROOT = PACKAGE.parent
IMPORT_ALL = """
import importlib, json, sys
for name in json.load(sys.stdin):
    importlib.import_module(name)
print(json.dumps(sorted(n for n in sys.modules if n.split(".")[0] == "sf")))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_code_is_closed_under_import(stage: str) -> None:
    """Importing every module of the closure imports no module outside it."""
    files = [name for name in stage_code(stage).modules if name.endswith(".py")]
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    runner = RUNNER if stage == "report" else {**RUNNER, **LOOKS}
    counted = {name for name in loaded if not any(f"{name}.".startswith(f"{r}.") for r in runner)}
    # What the reading of parameters checks names with decides no result.
    counted -= {"sf.baselines", "sf.baselines.registry", "sf.baselines.method"} - set(names)
    assert counted == set(names)


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
    """What would cost a training run without deciding one."""
    trained = stage_code("train").modules
    for part in ("sf/report/", "sf/evaluation/", "sf/baselines/", "sf/profiling/", "sf/mini/"):
        assert {name for name in trained if name.startswith(part)} <= {"sf/report/__init__.py"}
    assert not {"sf/errors.py", "sf/config.py", "sf/jobs.py", "sf/cli.py"} & trained.keys()
    assert {"sf/training/trainer.py", "sf/attention/layer.py", "sf/selection/top_p.py"} <= set(
        trained
    )
    assert "sf/report/style.py" in stage_code("report").modules
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


def copied(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "sf", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def digests(folder: Path) -> dict[str, dict[str, str]]:
    code = (
        "import json; from sf.jobs import STAGES; from sf.result_key.imports import stage_code;"
        "print(json.dumps({s: stage_code(s).modules for s in STAGES}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    return dict(json.loads(result.stdout))


def test_a_change_reaches_the_stages_that_import_it_and_a_comment_none(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    before = digests(folder)
    for file in folder.rglob("*.py"):
        source = file.read_text()
        file.write_text(source.replace("\n\n\n", "\n# A comment.\n\n\n"))
    assert digests(folder) == before
    changes = {
        "sf/training/monitor.py": {"train"},
        "sf/profiling/roofline.py": {"profile"},
        "sf/report/build.py": {"report"},
        "sf/report/published.csv": {"report"},
        "sf/report/page.html.jinja": {"report"},
        "sf/baselines/minference.py": {"evaluate", "calibrate"},
        "sf/errors.py": set(),
        "sf/selection/top_p.py": {"base", "calibrate", "train", "evaluate", "profile"},
    }
    for name, stages in changes.items():
        file = folder / name
        content = file.read_bytes()
        file.write_bytes(content + b"\nMORE = 1\n")
        after = digests(folder)
        assert {stage for stage in before if before[stage] != after[stage]} == stages, name
        file.write_bytes(content)
