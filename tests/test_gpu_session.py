"""`make gpu` without the packages that a GPU machine lacks: rehearsed, interrupted, resumed."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu_session.py"
ABSENT = (
    *(
        "pydantic",
        "ruamel",
        "loguru",
        "rouge_score",
        "jiwer",
        "tenacity",
        "trl",
        "datasets",
        "av",
        "mlflow",
    ),
    *("flash_attn", "lmms_eval", "hypothesis", "pytest_timeout", "xdist", "dvc", "snakemake"),
)
HIDE = """
import os
import sys
from importlib.machinery import PathFinder

class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {names!r}
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Absent
# Nor is this project installed there: the script finds it, and tells its own processes.
if os.environ.pop("WITHOUT_PROJECT", None):
    sys.path[:] = [each for each in sys.path if not os.path.isfile(each + "/sf/__init__.py")]
    sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each)]
    for name in [each for each in sys.modules if each.partition(".")[0] == "sf"]:
        del sys.modules[name]
"""


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of `gpu_sections` as the script finds it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"gpu_sections.{name}")


@pytest.fixture
def rehearse(tmp_path: Path) -> Any:
    """Runs the script on a CPU in a process that cannot import what a GPU machine lacks."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDE.format(names=set(ABSENT)))
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "WITHOUT_PROJECT": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "SF_COMMIT": "abc",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", str(SCRIPT), "--output", str(tmp_path / "out")]
        return subprocess.run(
            [*command, *words], capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    return run


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"gpu_session{name}.json").read_text())


FACTS = {
    *("device", "memory_gib", "driver", "versions", "commit", "dirty", "notes", "clocks", "date"),
    *("section", "step", "rehearsal", "name", "value", "low", "high", "unit", "target", "better"),
}
QUICK = ("device", "attention", "decode profile", "top-p", "training")


def test_a_session_needs_little_and_writes_every_row(rehearse: Any, tmp_path: Path) -> None:
    """Short sections of every kind; `test_the_whole_session` covers all."""
    done = rehearse("--rehearse", *(word for name in QUICK for word in ("--only", name)))
    assert done.returncode == 0, done.stderr
    steps = read(tmp_path / "out", "_steps")
    assert {name.split(": ")[0] for name in steps} == set(QUICK)
    skipped = steps.pop("training: training step")
    assert skipped["status"] == "skipped"
    assert "trl" in skipped["reason"]
    assert {step["status"] for step in steps.values()} == {"done"}, done.stderr
    rows = read(tmp_path / "out", "")
    assert all(set(row) >= FACTS for row in rows)
    assert all(row["commit"] == "abc" and row["rehearsal"] for row in rows)
    assert {"torch", "transformers", "triton", "cudnn", "python"} <= set(rows[0]["versions"])
    names = {row["name"] for row in rows}
    assert "prefill 96 selection's share" in names
    assert any(re.fullmatch("prefill 96 sparse, cuDNN over dense .*", name) for name in names)
    assert "top-p 64 sparse, prompt 2, again" in names
    ratio = [row for row in rows if row["name"] == "prefill 96 token ratio"]
    assert ratio[0]["value"] == pytest.approx(0.25, abs=0.02)
    # A second call has nothing to do and leaves the rows alone.
    again = rehearse("--rehearse", "--only", "device", "--only", "attention")
    assert again.returncode == 0
    assert again.stdout == ""
    assert read(tmp_path / "out", "") == rows


@pytest.mark.slow
def test_the_whole_session(rehearse: Any, tmp_path: Path) -> None:
    done = rehearse("--rehearse")
    assert done.returncode == 0, done.stderr
    steps = read(tmp_path / "out", "_steps")
    skipped = {name for name, step in steps.items() if step["status"] == "skipped"}
    assert skipped == {"training: training step", "predicted memory: predicted peak"}
    assert {step["status"] for step in steps.values()} == {"done", "skipped"}, done.stderr
    rows = {row["name"]: row["value"] for row in read(tmp_path / "out", "")}
    if not torch.cuda.is_available():
        assert rows["tests kernels, skipped"] > 0
    assert rows["tests not reached"] == 0
    assert rows["tests kernels, failed"] == rows["tests backends, failed"] == 0


def test_the_devices_tests_collect_without_the_rest_of_the_stack(
    rehearse: Any, tmp_path: Path
) -> None:
    done = rehearse("--rehearse", "--only", "tests")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["value"] for row in read(tmp_path / "out", "")}
    for folder in ("kernels", "backends", "decoding"):
        assert sum(rows[f"tests {folder}, {how}"] for how in ("passed", "skipped")) > 10
    assert rows["tests not reached"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr


def test_make_gpu_installs_nothing() -> None:
    text = (ROOT / "Makefile").read_text()
    (rule,) = re.findall(r"^gpu:([^\n]*)\n((?:\t.*\n)+)", text, flags=re.M)
    assert rule[0].split("##")[0].strip() == ""  # no prerequisite: `env` would install
    assert rule[1] == "\t$(PYTHON) benchmarks/gpu_session.py $(GPU)\n"


# -- the session itself, with steps made here -----------------------------------------------


@pytest.fixture
def session(sections: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs sections of made steps: {section: {step: function}}, each with its seconds."""
    module = importlib.import_module("gpu_session")
    scale = sections("scale").REHEARSAL

    def run(made: dict[str, tuple[float, dict[str, Any]]], seconds: float = 60.0, **named: Any):
        parts = [
            module.Section(name, limit / scale.patience, name) for name, (limit, _) in made.items()
        ]
        monkeypatch.setattr(module, "SECTIONS", parts)
        monkeypatch.setattr(module, "LEAST_SECONDS", 0.05)
        monkeypatch.setattr(
            module, "steps_of", lambda section, scale, folder: made[section.name][1]
        )
        options = {"only": [], "again": False, **named}
        module.session(scale, tmp_path, seconds / scale.patience, **options)
        return sections("journal").Journal(tmp_path)

    return run


def row(sections: Any, value: float) -> list[Any]:
    from table import Row

    return [Row("a figure", value, None, None, "ms")]


def test_a_cut_section_keeps_its_rows_and_a_second_call_goes_on(
    session: Any, sections: Any
) -> None:
    def slow() -> Any:
        time.sleep(30)

    began = time.monotonic()
    first = session(
        {
            "a": (6.0, {"quick": lambda: row(sections, 1.0), "slow": slow}),
            "b": (6.0, {"after": lambda: row(sections, 2.0)}),
        }
    )
    assert time.monotonic() - began < 20
    assert {name: step["status"] for name, step in first.steps.items()} == {
        "a: quick": "done",
        "a: slow": "cut",
        "b: after": "done",
    }
    assert [each["value"] for each in first.rows] == [1.0, 2.0]

    def twice() -> Any:
        raise AssertionError("a finished step was measured again")

    second = session(
        {
            "a": (6.0, {"quick": twice, "slow": lambda: row(sections, 3.0)}),
            "b": (6.0, {"after": twice}),
        }
    )
    assert {step["status"] for step in second.steps.values()} == {"done"}
    assert sorted(each["value"] for each in second.rows) == [1.0, 2.0, 3.0]


def test_a_failed_step_and_a_dead_process_do_not_take_the_others_along(
    session: Any, sections: Any
) -> None:
    def fails() -> Any:
        raise ValueError("no such kernel")

    def lost() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    journal = session(
        {
            "a": (
                30.0,
                {
                    "fails": fails,
                    "dies": lambda: os._exit(139),
                    "loses": lost,
                    "last": lambda: row(sections, 4.0),
                },
            )
        }
    )
    steps = journal.steps
    assert steps["a: fails"]["reason"] == "ValueError: no such kernel"
    assert steps["a: dies"] | {"at": 0} == {
        "status": "cut",
        "reason": "its process ended with 139",
        "at": 0,
    }
    assert steps["a: loses"]["status"] == "failed"
    assert steps["a: last"]["status"] == "done"
    assert [found["step"] for found in journal.rows] == ["last"]


def test_measured_anew_replaces_the_rows_of_a_step(session: Any, sections: Any) -> None:
    session({"a": (20.0, {"one": lambda: row(sections, 1.0), "two": lambda: row(sections, 2.0)})})
    journal = session(
        {"a": (20.0, {"one": lambda: row(sections, 5.0), "two": lambda: row(sections, 6.0)})},
        again=True,
    )
    assert sorted(found["value"] for found in journal.rows) == [5.0, 6.0]


def test_no_section_begins_when_the_time_is_over(
    session: Any, sections: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = session({"a": (9.0, {"one": lambda: row(sections, 1.0)})}, seconds=0.01)
    assert journal.steps == {}
    assert "not begun" in capsys.readouterr().err


def test_counts_of_a_cut_test_run(sections: Any) -> None:
    counts = sections("kernel_tests").counts
    words = (
        "collecting ... collected 220 items / 139 deselected / 81 selected\n\n"
        "tests/attention/kernels/test_decode.py::test_a[masked-True] PASSED [ 1%]\n"
        "tests/attention/backends/test_cuda.py::test_b[x PASSED] FAILED [ 2%]\n"
    )
    values = {each.name: each.value for each in counts(words, True)}
    assert values["tests kernels, passed"] == 1
    assert values["tests backends, failed"] == 1
    assert values["tests not reached, out of time"] == 79
    words = (
        "created: 8/8 workers\n8 workers [81 items]\n\n"
        "tests/attention/kernels/test_decode.py::test_a[masked-True] \n"
        "[gw1] [  1%] PASSED tests/attention/kernels/test_decode.py::test_a[masked-True] \n"
        "[gw0] [  2%] FAILED tests/attention/backends/test_cuda.py::test_b[x PASSED] \n"
        "FAILED tests/attention/backends/test_cuda.py::test_b[x PASSED] - assert 1 == 2\n"
    )
    values = {each.name: each.value for each in counts(words, False)}
    assert values["tests kernels, passed"] == values["tests backends, failed"] == 1
    assert values["tests not reached"] == 79
    with pytest.raises(RuntimeError, match="collected no test"):
        counts("ERROR tests/conftest.py - ModuleNotFoundError", False)
