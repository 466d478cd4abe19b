"""The report's tests between rows on the same questions."""

from __future__ import annotations

import json
from pathlib import Path

import made_study
import pandas as pd
import pytest

from sf.report.build import build_report
from sf.report.paired import paired_lines

SUITES = ("chartqa", "textvqa_val")


def write(folder: Path, right: dict[str, int], *, source: str = "q") -> None:
    """A finished evaluation with 60 questions per benchmark, the first ones right."""
    made_study.write_scores(folder, 0.5, 1.0)
    for suite, count in right.items():
        lines = [
            {
                "benchmark": suite,
                "task": suite,
                "doc_id": at,
                "source": f"{source}{at}",
                "target": "A",
                "reply": "A" if at < count else "B",
                "token_ratio": 1.0,
                "layer_ratios": [1.0, 1.0],
                "prompt_tokens": 64,
                "score": float(at < count),
                "group": "",
                "unit": "",
                "counted": True,
                "matched": True,
            }
            for at in range(60)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "samples.jsonl").write_text(text)


@pytest.fixture
def study(tmp_path: Path):
    """Two suites of one benchmark each; training wins in one of them."""
    made = made_study.write_study(tmp_path)
    made = made_study.Study(made.root, made.models, made.methods, made.objectives, SUITES)
    right = {"full": (50, 50), "zipvl": (30, 49), "sparsity_forcing/seed0": (50, 49)}
    for row, counts in right.items():
        for suite, count in zip(SUITES, counts, strict=True):
            write(tmp_path / f"evaluate/tiny/{row}/{suite}", {suite: count})
    return made


def test_systems_are_tested_against_dense_and_trained_against_untrained(study) -> None:
    lines, notes = paired_lines(study)
    assert notes == []
    pairs = list(dict.fromkeys(zip(lines["first_system"], lines["second_system"], strict=True)))
    assert pairs == [
        ("full", "zipvl"),
        ("full", "sparsity_forcing"),
        ("zipvl", "sparsity_forcing"),
    ]
    line = lines[(lines["second_system"] == "zipvl") & (lines["benchmark"] == "chartqa")].iloc[0]
    assert line["difference"] == pytest.approx(-100 * 20 / 60)
    assert line["low"] < line["difference"] < line["high"] < 0
    assert line["p_value"] < line["p_holm"] < 0.01
    assert line["p_holm"] == pytest.approx(2 * line["p_value"])
    same = lines[(lines["second_system"] == "zipvl") & (lines["benchmark"] == "textvqa_val")].iloc[
        0
    ]
    assert same["p_holm"] == 1.0


def test_the_report_shows_them(study, tmp_path: Path) -> None:
    build_report(study, "made", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    part = text[text.index("\n## Paired comparisons") :]
    (line,) = [x for x in part.splitlines() if "ChartQA" in x and "| zipvl | sparsity" in x]
    assert "+33.3" in line
    table = pd.read_csv(tmp_path / "report" / "tables" / "paired_tests.csv")
    assert len(table) == 6
    section = part[: part.index("\n## ", 1)]
    shown = [x for x in section.splitlines() if x.startswith("| tiny |")]
    matters = (table["p_value"] < 0.05) | (table["low"] > 0) | (table["high"] < 0)
    assert 0 < len(shown) == matters.sum() < len(table)  # equal rows are left to the file
    assert f"6 comparisons, {(table['p_holm'] < 0.05).sum()} with an adjusted p below" in part


def test_other_questions_are_said_and_not_compared(study) -> None:
    write(study.root / "evaluate/tiny/zipvl/chartqa", {"chartqa": 30}, source="other")
    lines, notes = paired_lines(study)
    assert len(lines) == 4
    assert len(notes) == 2
    assert all("did not answer the same questions" in note for note in notes)


def test_what_was_not_measured_is_left_out(study) -> None:
    for suite in SUITES:
        (study.root / f"evaluate/tiny/full/{suite}/stage.json").unlink()
    lines, notes = paired_lines(study)
    assert notes == []
    assert set(lines["first_system"]) == {"zipvl"}
