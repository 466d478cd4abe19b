"""The page of a paper table: its cells and files, and that text stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import made_study
import pandas as pd
import pytest

from sf.report.cells import DIFFERS, NOT_COMPARABLE, NOT_PUBLISHED, NOT_RUN, REPRODUCED
from sf.report.definitions import DEFINITIONS, Row
from sf.report.published import figure_of
from sf.report.results import Study
from sf.report.table_pages import write_table_page
from sf.stages.table import Parameters, inputs

OWN = Row(name="sparsity_forcing", as_published="sparsity_forcing", trained=True)
FULL, ZIPVL, BASE = (
    Row(name=name, as_published=name, trained=False) for name in ("full", "zipvl", "base")
)
ROWS, CURVES = [FULL, ZIPVL, OWN], [BASE, OWN]
MODEL = "qwen2.5-vl-7b"


def page(target: str, study: Study, rows: list[Row], folder: Path) -> dict[str, Any]:
    """Write a table's page; returns its content."""
    write_table_page(target, study, rows, folder, f"snakemake --cores all {target}")
    content: dict[str, Any] = json.loads((folder / f"{target}.json").read_text(encoding="utf-8"))
    return content


def cells(content: dict[str, Any], row: str) -> dict[str, dict[str, Any]]:
    (line,) = (line for line in content["lines"] if line["keys"][1] == row)
    return dict(zip(content["columns"], line["figures"], strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return made_study.write_study(tmp_path_factory.mktemp("results"))


@pytest.fixture
def published(tmp_path: Path) -> Study:
    """A study of a published model on the benchmarks' own data, with given dense scores."""
    root = tmp_path / "results"
    made_study.stamp(root / "benchmarks", "benchmarks", benchmarks={"source": "hub"})
    folder = root / f"evaluate/{MODEL}/full/all"
    made_study.write_scores(folder, 0.8, 1.0)
    scores = pd.read_csv(folder / "tables/scores.csv").astype(
        {"score": float, "low": float, "high": float}
    )
    for name, apart in (("mme", 42.0), ("mmstar", -1.6)):
        figure = figure_of("table1_image", MODEL, "full", name)
        assert figure is not None
        at = scores["benchmark"] == name
        scores.loc[at, "score"] = figure + apart
        scores.loc[at, ["low", "high"]] = figure - 50, figure + 50
    scores.to_csv(folder / "tables/scores.csv", index=False)
    return Study(root, (MODEL,), ("full", "zipvl"), (), ("all",))


def full_without(study: Study, benchmark: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The cells of full in table 1 if the results lack a benchmark."""
    file = study.root / f"evaluate/{MODEL}/full/all/tables/scores.csv"
    scores = pd.read_csv(file)
    scores[scores["benchmark"] != benchmark].to_csv(file, index=False)
    return cells(page("table1", study, ROWS[:1], folder), "full")


def test_a_cell_says_ours_published_difference_interval_and_number(
    published: Study, tmp_path: Path
) -> None:
    content = page("table1", published, ROWS[:2], tmp_path)
    full, zipvl = cells(content, "full"), cells(content, "zipvl")
    assert full["MME"]["text"] == "2345"
    assert full["MME"]["published"] == "2303"
    assert full["MME"]["difference"] == "+42"
    assert full["MME"]["interval"] == "2253 to 2353"
    assert full["MME"]["samples"] == 24
    assert full["MME"]["verdict"] == REPRODUCED  # 42 of 2800 are 1.5 points of 100
    assert full["MMStar"]["difference"] == "-1.6"
    assert full["MMStar"]["verdict"] == DIFFERS
    assert zipvl["MME"]["verdict"] == NOT_RUN
    assert zipvl["MME"]["text"] == ""
    assert zipvl["MME"]["published"] == "2290"
    assert zipvl["average"]["verdict"] == NOT_RUN
    assert re.match(r"\d of 9 published values are reproduced within 1.5", content["sentence"])


def test_an_average_of_some_benchmarks_is_not_shown(published: Study, tmp_path: Path) -> None:
    full = full_without(published, "chartqa", tmp_path)
    assert full["average"]["text"] == ""
    assert "some benchmarks were not run" in full["average"]["note"]
    assert full["token ratio (%)"]["note"] == "of 6 of 7 benchmarks"
    assert full["ChartQA"]["verdict"] == NOT_RUN


def test_a_published_average_that_is_not_stated_is_formed(made: Study, tmp_path: Path) -> None:
    assert figure_of("table2_video", MODEL, "full", "video_average") is None
    full = cells(page("table2", made, ROWS, tmp_path), "full")
    # 62.9, 69.7 (subtitles), 64.3, 46.3, 70.2, 63.2 and 72.4 are published.
    assert full["average"]["published"] == "64.1"


def test_table_1_has_averages_of_text_heavy_and_other_images(
    published: Study, tmp_path: Path
) -> None:
    """Beside figures computed from the paper's scores, which nothing reproduces."""
    content = page("table1", published, ROWS[:2], tmp_path)
    text, other = "text-heavy images average (ours)", "other images average (ours)"
    assert content["columns"][-3:] == ["average", text, other]
    full, zipvl = cells(content, "full"), cells(content, "zipvl")
    assert full[text]["text"] == "80.0"
    assert full[text]["published"] == "83.8"  # ChartQA 84.0, TextVQA 82.9, OCRBench 845 of 1000
    assert full[text]["difference"] == "-3.8"
    assert full[text]["interval"] == "74.2 to 85.8"  # 10 points over the root of 3
    assert full[text]["samples"] == 3 * 24
    assert full[text]["verdict"] == NOT_PUBLISHED
    assert full[other]["text"] == "76.1"  # MME 2345 of 2800, MMBench 80, MMStar 60.6, MMMU-Pro 80
    assert full[other]["published"] == "66.3"
    assert "computed here" in full[other]["note"]
    assert zipvl[text]["verdict"] == NOT_RUN
    assert re.match(r"\d of 9 published values", content["sentence"])
    for suffix in ("html", "md", "tex"):
        file = tmp_path / ("index.html" if suffix == "html" else f"table1.{suffix}")
        assert f"Not in the paper: {text} and {other}; their published" in file.read_text()
    frame = pd.read_csv(tmp_path / "table1.csv")
    assert set(frame[frame["column"] == text]["published"]) == {83.8, 82.8}
    figures = write_table_page("table1", published, ROWS[:1], tmp_path, "")
    assert figures[f"{MODEL}/full/image_text_average"] == pytest.approx(80.0)
    assert figures[f"{MODEL}/full/average"] == full["average"]["value"]
    assert "ours" not in str(page("table2", published, ROWS[:1], tmp_path)["columns"])


def test_an_average_of_text_heavy_images_needs_only_those(published: Study, tmp_path: Path) -> None:
    full = full_without(published, "mme", tmp_path)
    assert full["text-heavy images average (ours)"]["text"] == "80.0"
    assert full["other images average (ours)"]["text"] == full["average"]["text"] == ""
    assert "some benchmarks were not run" in full["other images average (ours)"]["note"]


def test_stand_ins_get_no_verdict(made: Study, tmp_path: Path) -> None:
    content = page("table3", made, ROWS, tmp_path)
    assert "not comparable" in content["notes"][0]
    assert cells(content, "full")["MME"]["verdict"] == NOT_COMPARABLE
    assert cells(content, "full")["MME"]["difference"] == ""
    assert cells(content, "full")["average"]["published"] == "73.2"
    assert cells(content, "zipvl")["average"]["verdict"] == NOT_PUBLISHED
    assert content["sentence"].startswith("tiny, average: full 80.0 with 100.0 % of the tokens; ")


@pytest.mark.parametrize("target", ["table1", "table3"])
def test_a_row_that_the_paper_lacks_is_marked(made: Study, target: str, tmp_path: Path) -> None:
    extra = Row(name="sparse_video", as_published="videonsa", trained=True)
    content = page(target, made, [*ROWS, extra], tmp_path)
    said = "Rows in no table of the paper: sparse_video."
    assert content["notes"][-1] == said
    assert cells(content, "sparse_video")["MME"]["published"] == ""
    for name in ("index.html", f"{target}.md"):
        assert said in (tmp_path / name).read_text(encoding="utf-8").replace("\\_", "_")
    assert said not in page(target, made, ROWS, tmp_path)["notes"]


@pytest.mark.parametrize("target", DEFINITIONS)
def test_every_table_has_all_files_with_all_columns(
    made: Study, target: str, tmp_path: Path
) -> None:
    shows = DEFINITIONS[target].shows
    rows = CURVES if shows in ("curve", "lengths", "layers") else ROWS
    content = page(target, made, [] if shows == "profile" else rows, tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for column in content["columns"]:
        assert f">{column}<" in text
        assert column.replace("%", r"\%") in (tmp_path / f"{target}.tex").read_text()
        assert column in (tmp_path / f"{target}.md").read_text()
    frame = pd.read_csv(tmp_path / f"{target}.csv")
    assert len(frame) == len(content["lines"]) * len(content["columns"]) > 0
    for link in re.findall(r"""(?:href|src)=["']([^"']+)""", text):
        assert link.startswith("data:") or (tmp_path / link).is_file()
    assert not re.search(r"https?://", re.sub(r'"data:[^"]+"', "", text))


def test_nothing_that_was_run_is_said(tmp_path: Path) -> None:
    study = Study(tmp_path / "none", ("tiny",), ("full",), (), ("all",))
    content = page("table1", study, ROWS[:1], tmp_path)
    assert content["sentence"] == "None of its rows was run."
    assert content["outcome"] == {NOT_RUN: 11}


def test_a_cell_is_stale_when_its_results_input_has_changed(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path / "results")
    stamp = study.root / f"evaluate/{made_study.MODEL}/full/all/stage.json"
    content = json.loads(stamp.read_text())
    data = tmp_path / "rows.txt"
    data.write_text("now")
    content |= {"inputs": {"rows": "0" * 32}, "input_paths": {"rows": str(data)}}
    stamp.write_text(json.dumps(content))
    shown = page("table1", study, ROWS, tmp_path / "page")
    assert cells(shown, "full")["MME"]["stale"]
    assert cells(shown, "full")["average"]["stale"]
    assert not cells(shown, "zipvl")["MME"]["stale"]
    assert "changed since: rows" in (tmp_path / "page/index.html").read_text()


def test_text_of_results_stays_text(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path / "results")
    stamp = study.root / f"evaluate/{made_study.MODEL}/full/all/stage.json"
    content = json.loads(stamp.read_text())
    content["command"] = "</script><script>alert(1)</script>"
    stamp.write_text(json.dumps(content))
    page("table1", study, ROWS, tmp_path / "page")
    assert "<script>alert" not in (tmp_path / "page/index.html").read_text()


def test_the_stage_reads_what_its_table_shows_and_nothing_else(tmp_path: Path) -> None:
    made_study.write_study(tmp_path)
    given = {"models": ["tiny"], "rows": [FULL, OWN], "suites": ["all"], "train_seed": 0}
    for target, names in (
        (
            "table1",
            ["benchmarks", "evaluate/tiny/full/all", "evaluate/tiny/sparsity_forcing/seed0/all"],
        ),
        ("figure4c", ["profile/tiny"]),
        ("table7", ["train/tiny/sparsity_forcing/seed0"]),
    ):
        parameters = Parameters(
            target=target, **given, results=tmp_path, output=tmp_path / "table" / target
        )
        assert list(inputs(parameters)) == names
