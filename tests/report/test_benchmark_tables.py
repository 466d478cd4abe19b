"""Tables 1 and 2: measured figures beside the published ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_study
import pandas as pd
import pytest

from sf.evaluation.benchmarks import BENCHMARKS
from sf.report import published
from sf.report.benchmark_tables import AVERAGE, RATIO, benchmarks_of_kind, beyond, lines, measured
from sf.report.results import Study


@pytest.mark.parametrize(
    ("row", "average"),
    [("full", 73.8), ("fastv", 69.9), ("zipvl", 72.9), ("sparsity_forcing", 73.6)],
)
def test_the_average_reproduces_the_published_one(row: str, average: float) -> None:
    benchmarks = benchmarks_of_kind("image")
    scores = {
        benchmark.name: published.figure("image", "qwen2.5-vl-7b", row, benchmark.name, "final")
        for benchmark in benchmarks
    }
    assert None not in scores.values()
    known = {name: value for name, value in scores.items() if value is not None}
    formed = published.average(known, benchmarks)
    assert formed == pytest.approx(average, abs=0.06)  # FastV: 69.848
    assert published.figure("image", "qwen2.5-vl-7b", row, "image_average", "final") == average
    del known["mme"]
    assert published.average(known, benchmarks) is None


def test_the_final_version_is_asked_first() -> None:
    assert published.latest("image", "qwen2.5-vl-7b", "full", "mme") == (2303.0, "final")
    assert published.latest("image", "qwen2.5-vl-3b", "full", "mme") == (2169.0, "v1")
    assert published.latest("image", "qwen2.5-vl-3b", "fastv", "mme") == (None, "")


def test_every_published_metric_is_a_known_column() -> None:
    known = {benchmark.name for benchmark in BENCHMARKS} | {RATIO, "image_average", "video_average"}
    tables = set(published.TABLES.values())
    assert {key[4] for key in published._figures() if key[1] in tables} <= known


def test_measured_rows_hold_score_interval_and_provenance(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path)
    rows = lines(measured(study), study, "image")
    assert [(row.model, row.row, row.source) for row in rows] == [
        ("tiny", "full", "measured"),
        ("tiny", "zipvl", "measured"),
        ("tiny", "sparsity_forcing", "measured"),
        ("qwen2.5-vl-7b", "full", "published (final)"),
        ("qwen2.5-vl-7b", "zipvl", "published (final)"),
        ("qwen2.5-vl-7b", "sparsity_forcing", "published (final)"),
    ]
    mme = rows[2].cells["mme"]
    assert (mme.text, mme.interval) == ("2100", "1820 to 2380")
    assert "24 samples" in mme.note
    assert "commit 0123456" in mme.note
    assert rows[2].cells[RATIO].text == "50.0"
    assert rows[2].cells[RATIO].interval == "48.1 to 51.9"  # 5 points over the root of 7
    assert (rows[0].cells[RATIO].text, rows[0].cells[RATIO].interval) == ("100.0", "")
    assert rows[2].cells[AVERAGE].text == "75.0"
    assert rows[2].cells[AVERAGE].interval == "71.2 to 78.8"  # 10 points over the root of 7
    assert rows[3].cells["mme"].text == "2303"
    assert rows[2].cells["image_text_average"].interval == "69.2 to 80.8"  # over the root of 3
    assert rows[2].values["image_other_average"] == pytest.approx(75.0)
    assert rows[3].cells["image_text_average"].text == "83.8"
    assert rows[3].cells["image_other_average"].text == "66.3"
    assert "computed here" in rows[3].cells["image_other_average"].note
    video = lines(measured(study), study, "video")
    assert not {"image_text_average", "image_other_average"} & video[0].cells.keys()


def test_one_line_a_system_is_that_of_the_first_training_seed(tmp_path: Path) -> None:
    made = made_study.write_study(tmp_path)
    made_study.write_scores(tmp_path / "evaluate/tiny/sparsity_forcing/seed1/all", 0.4, 0.3)
    study = replace(made, seeds=(0, 1))
    table = measured(study)
    trained = table[table["row"] == "sparsity_forcing"]
    assert len(trained) == len(BENCHMARKS)
    assert set(trained["token_ratio"]) == {0.5}
    assert lines(table, study, "image")[2].cells[RATIO].text == "50.0"
    second = measured(replace(made, seeds=(1, 0)))
    assert set(second[second["row"] == "sparsity_forcing"]["token_ratio"]) == {0.3}


def test_a_rows_ratio_samples_and_published_figures_are_its_own(tmp_path: Path) -> None:
    """Benchmarks with unlike ratios and sizes, of a model that the paper has."""
    study = replace(made_study.study_at(tmp_path), models=("qwen2.5-vl-7b",))
    for system, ratio in (("full", 1.0), ("zipvl", 0.8)):
        folder = tmp_path / f"evaluate/qwen2.5-vl-7b/{system}/all"
        made_study.write_scores(folder, 0.5, ratio)
        path = folder / "tables/scores.csv"
        scores = pd.read_csv(path).astype({"token_ratio": float})
        first = scores["benchmark"] == "mme"
        scores.loc[first, ["samples", "token_ratio"]] = 100, ratio / 2
        scores.to_csv(path, index=False)
    table = measured(study)
    row = next(line for line in lines(table, study, "image") if line.row == "zipvl")
    assert row.values[RATIO] == pytest.approx(100 * (0.4 + 6 * 0.8) / 7)
    assert row.provenance.startswith(f"{100 + 6 * 24} samples; run ")
    mme = table[table["benchmark"] == "mme"].set_index("row")["published"]
    for system in ("full", "zipvl"):
        assert mme[system] == published.latest("image", "qwen2.5-vl-7b", system, "mme")[0]
    assert mme["full"] != mme["zipvl"]


def test_a_row_that_a_model_lacks_has_no_line(tmp_path: Path) -> None:
    study = replace(made_study.study_at(tmp_path), models=("a", "b"), without={"b": ["zipvl"]})
    rows = [(line.model, line.row) for line in lines(measured(study), study, "video")]
    assert ("a", "zipvl") in rows
    assert ("b", "zipvl") not in rows
    assert ("b", "sparsity_forcing") in rows


def test_a_model_of_the_paper_stands_beside_its_own_published_rows(tmp_path: Path) -> None:
    study = Study(tmp_path, ("qwen2-vl-7b",), ("full", "zipvl"), ("sparsity_forcing",), ("all",))
    rows = lines(measured(study), study, "video")
    assert [(row.row, row.source) for row in rows] == [
        ("full", "measured"),
        ("full", "published (final)"),
        ("full", "published (v1)"),
        ("zipvl", "measured"),
        ("zipvl", "published (v1)"),
        ("sparsity_forcing", "measured"),
        ("sparsity_forcing", "published (final)"),
        ("sparsity_forcing", "published (v1)"),
    ]
    assert {cell.text for cell in rows[0].cells.values()} == {"not measured"}
    assert rows[1].cells["videomme"].text == "n/p"
    assert rows[1].cells[AVERAGE].text == "62.1"
    assert rows[2].cells["videomme"].text == "58.2"


def test_a_missing_column_leaves_no_average(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path)
    path = tmp_path / "evaluate/tiny/zipvl/all/tables/scores.csv"
    path.write_text("".join(x for x in path.open() if not x.startswith("ocrbench")))
    row = lines(measured(study), study, "image")[1]
    assert row.cells["ocrbench"].text == row.cells[AVERAGE].text == "not measured"
    assert row.cells["mme"].text == "1960"


def test_what_is_in_neither_table_stands_apart(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path)
    path = tmp_path / "evaluate/tiny/full/all/tables/scores.csv"
    before = lines(measured(study), study, "image")[0]
    path.write_text(path.read_text() + "pope,90,85,95,100,24,0.1,0.08,0.13\n")
    table = measured(study)
    assert [[cell.text for cell in row] for row in beyond(table)] == [
        ["tiny", "full", "POPE", "90.0", "10.0"]
    ]
    assert beyond(table)[0][-1].interval == "8.0 to 13.0"
    assert lines(table, study, "image")[0].cells == before.cells
