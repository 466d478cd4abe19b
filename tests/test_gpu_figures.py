"""From the rows of a GPU session to README's table and the report's figures 4c and 4d."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module as the script finds it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_sections.figures")


def measured(folder: Path, rehearsal: bool = False) -> None:
    """Rows as a device would give them."""
    common = {
        "device": "NVIDIA made", "low": None, "high": None, "unit": "x", "target": None,
        "better": "higher", "commit": "0123456789", "date": "2026-01-01", "rehearsal": rehearsal,
    }  # fmt: skip
    lines = [
        ("attention", "prefill 65536 sparse over dense SDPA cuDNN", 7.0, None),
        ("attention", "prefill 65536 sparse, cuDNN over dense SDPA cuDNN", 9.04, 8.0),
        ("attention", "prefill 65536 dense", 1.0, None),
        ("attention", "prefill 131072 selection's share", 0.131, 0.2),
        ("prefill", "prefill 65536 dense", 3000.0, None),
        ("prefill", "prefill 65536 sparse", 1500.0, None),
        ("model", "KV 200000 dense", 10.7, None),
        ("model", "KV 200000 sparse", 2.7, None),
        ("throughput", "throughput 200000 KV", 0.25, 0.27),
        ("throughput", "throughput 200000, own batch, sparse over dense", 4.2, 3.3),
    ]
    rows = [
        {**common, "section": part, "name": name, "value": value, "target": target, "step": "s"}
        for part, name, value, target in lines
    ]
    folder.mkdir(parents=True)
    (folder / "gpu_session.json").write_text(json.dumps(rows))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with what `carry` reads and writes, and no rows of a GPU."""
    (tmp_path / "sf" / "report").mkdir(parents=True)
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_figures_reach_readme_and_report(figures: Any, copy: Path) -> None:
    measured(copy / "reports" / "measured" / "nvidia-made")
    figures.carry(copy)
    text = (copy / "README.md").read_text()
    assert "| ≥ 8 \u00d7 | 9.0 \u00d7 |" in text
    assert "131,072 tokens | ≤ 20 % | 13% |" in text
    assert "| ≤ 1.2 \u00d7 | not measured |" in text
    lines = list(csv.DictReader((copy / "sf" / "report" / "gpu.csv").open()))
    assert [(line["metric"], line["side"], float(line["value"])) for line in lines] == [
        ("prefill_ms", "dense", 3000.0),
        ("prefill_ms", "sparse", 1500.0),
        ("kv_gib", "dense", 10.7),
        ("kv_gib", "sparse", 2.7),
        ("throughput_gain", "own batch", 4.2),
    ]
    figures.carry(copy)
    assert (copy / "README.md").read_text() == text


def test_a_rehearsal_is_never_carried(figures: Any, copy: Path) -> None:
    measured(copy / "reports" / "measured" / "local", rehearsal=True)
    figures.carry(copy)
    assert "9.0 \u00d7" not in (copy / "README.md").read_text()
    assert (copy / "sf" / "report" / "gpu.csv").read_text().count("\n") == 1


def test_what_is_carried_is_what_was_measured(figures: Any) -> None:
    """README's table and the report's data are those of `reports/measured`, cell by cell."""
    measured = figures.measured(ROOT / "reports" / "measured")
    text = (ROOT / "README.md").read_text()
    between = text.split(figures.BEGIN)[1].split(figures.END)[0]
    assert between.strip() == figures.readme_table(measured)
    assert (ROOT / "sf" / "report" / "gpu.csv").read_text() == figures.csv_text(measured)


def test_the_report_says_not_measured_or_draws(figures: Any, copy: Path) -> None:
    from sf.report.gpu_figures import gpu_section

    figures.carry(copy)
    section = gpu_section(pd.read_csv(copy / "sf" / "report" / "gpu.csv"), copy)
    assert section.pictures == []
    cells = {cell.text for line in section.tables[0].rows for cell in line[1:]}
    assert cells == {"not measured"}
    measured(copy / "reports" / "measured" / "nvidia-made")
    figures.carry(copy)
    section = gpu_section(pd.read_csv(copy / "sf" / "report" / "gpu.csv"), copy)
    rows = {line[0].text: [cell.text for cell in line] for line in section.tables[0].rows}
    assert rows["65,536"][1:4] == ["3e+03", "1.5e+03", "2.00"]
    assert rows["200,000"][4:7] == ["10.7", "2.7", "3.96"]
    assert "at 200,000 tokens 4.20 times" in section.text[-1]
    assert "each at its largest batch" in section.text[-1]
    assert (copy / "figures" / "gpu_figure4.png").is_file()
