"""The benchmarks run, and README's speed figures are those that they wrote."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sf.profiling.models import SHAPES, Shape

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "table")
# A sweep of hours whose table has a column per figure; a session with steps of its own; figures of
# a finished study, without a target.
OWN_TABLE = ("training_settings", "gpu_session", "ratio_gradient")
FIELDS = {"name", "value", "low", "high", "unit", "target", "better"}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script as `python benchmarks/NAME.py` does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setitem(SHAPES, "tiny", Shape(64, 2, 4, 2, 96, 256, True, "a test's"))
    return importlib.import_module


def run(module: Any, words: list[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows that a script wrote."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *words, "--json", str(file)])
    threads = torch.get_num_threads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(file.read_text())
    assert all(set(row) == FIELDS for row in rows)
    assert all(isinstance(row["value"], float) for row in rows)
    return rows


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_benchmark_imports_is_there(name: str) -> None:
    """Benchmarks are not part of the package: nothing else fails when something they use moves."""
    tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if (node.module or "").split(".")[0] == "sf":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(whole), whole


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in OWN_TABLE])
def test_every_benchmark_writes_rows_and_says_what_it_measures(
    name: str, load: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--json JSON rows: name, value, low, high, unit, target" in shown
    assert " ".join(module.__doc__.splitlines()[0].split()) in shown
    assert module.Row is load("table").Row  # one table for all


def test_make_bench_runs_every_script_for_a_cpu() -> None:
    text = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"^bench:.*\n((?:\t.*\n)+)", text, flags=re.M)
    assert "benchmarks/*.py" in command
    assert "--json $(BENCH)/" in command
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    (folder,) = re.findall(r"^BENCH \?= (.*)$", text, flags=re.M)
    assert f"/{folder}/" in ignored


def test_rows_are_on_disk_before_the_next_is_measured(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = load("table")
    file = tmp_path / "deep" / "rows.json"
    report = table.Report("a head", file)
    report.begin("first")
    report.add([table.Row("a", 2.0, 1.0, 3.0, "x", 1.5, "higher")])
    assert len(json.loads(file.read_text())) == 1
    report.add([table.Row("b", 2.0, 1.0, 3.0, "x", 1.5, "lower"), table.exact("c", 4.0, "MiB")])
    assert [row["name"] for row in json.loads(file.read_text())] == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert "| a | 2 | 1 - 3 | x | 1.5 met |" in shown.out
    assert "| b | 2 | 1 - 3 | x | 1.5 missed |" in shown.out
    assert "| c | 4 |  | MiB |  |" in shown.out
    assert "first" in shown.err


def test_the_decode_loops_benchmark_runs(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("decode_loop")
    monkeypatch.setattr(module, "SHAPE", "tiny")
    words = ["--lengths", "64", "--tokens", "4", "--repeats", "2", "--threads", "1"]
    rows = {row["name"] for row in run(module, words, tmp_path / "r.json", monkeypatch)}
    assert "token 64 sparse, loop over dense, loop" in rows


def test_the_servers_benchmark_runs(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--shape", "tiny", "--concurrency", "2", "--length", "32", "--tokens", "3"]
    words += ["--rounds", "1", "--repeats", "2", "--threads", "1"]
    rows = {row["name"] for row in run(load("serving"), words, tmp_path / "r.json", monkeypatch)}
    assert "2 clients, 32 tokens, sparse over full" in rows


def test_the_methods_benchmark_runs(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--shape", "tiny", "--visual", "16", "--text", "20", "--layers", "3"]
    words += ["--tokens", "2", "--repeats", "1"]
    rows = {row["name"] for row in run(load("methods"), words, tmp_path / "r.json", monkeypatch)}
    assert {"prefill zipvl", "decode twilight", "token ratio fastv"} <= rows


def written(value: float | None, text: str) -> bool:
    """Whether a number rounds to the one in the text, at the text's decimals."""
    decimals = len(text.partition(".")[2])
    return value is not None and f"{value:.{decimals}f}" == text


def test_the_readmes_ratios_are_those_of_a_file() -> None:
    """Every "N ×" of the section, with the interval after it, is a row of one script."""
    rows = [
        row
        for file in (ROOT / "reports" / "measured").glob("*/*.json")
        for row in json.loads(file.read_text())
        if (ROOT / "benchmarks" / f"{file.stem}.py").is_file()
    ]
    text = (ROOT / "README.md").read_text().split("## How fast")[1].split("\n## ")[0]
    claims = re.findall(r"([\d.]+) \u00d7(.*?)(?=[\d.]+ \u00d7|$)", " ".join(text.split()))
    assert len(claims) >= 4
    for ratio, rest in claims:
        span = re.search(r"\((?:95 % interval )?([\d.]+) to ([\d.]+)", rest)
        matching = [row for row in rows if row["unit"] == "x" and written(row["value"], ratio)]
        if span is not None:
            low, high = span.groups()
            matching = [r for r in matching if written(r["low"], low) and written(r["high"], high)]
        assert matching, f"{ratio}{rest}"


def test_training_is_assembled_by_one_process(load: Any, tmp_path: Path) -> None:
    """The paper's settings at the benchmarks' size: what the scale shards is whole here."""
    from argparse import Namespace

    script = load("training")
    arguments = Namespace(questions=1, completion=2, cells=2)
    rows = script.questions(tmp_path / "media", 2, script.CELL * 2)
    base = script.base_model(tmp_path / "base", rows, *script.small_shape(1))
    trainer = script.our_trainer(base, rows, script.settings(arguments, 1), tmp_path / "state")
    trainer.model.train()  # as `train` does: evaluation keeps no graph
    assert trainer._shares_prompts()
    assert trainer.schedule.group_size == script.GROUP
