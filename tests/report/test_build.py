"""The whole report: complete, self-contained, honest about what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import made_study
import pytest

from sf.report.benchmark_tables import Cell
from sf.report.build import build_report
from sf.report.gpu_figures import measured_on_gpus
from sf.report.page import Page, Section, Table, html, markdown
from sf.report.profile_sections import beside_the_paper, roofline
from sf.report.results import Result, Study

ON_GPU = int(not measured_on_gpus().empty)  # figures 4c and 4d, if this copy contains them


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a made study."""
    root, folder = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("report")
    study = made_study.write_study(root)
    from sf.plotting import figure, save

    for name in ("latency", "memory", "parts"):
        save(figure(2, 1)[0], root / "profile/tiny/figures", name)
    figures = build_report(study, "mini", folder)
    assert figures["tiny/sparsity_forcing/points_above"] == 3
    assert figures["tiny/sparsity_forcing/fixed_retention_p_token_ratio_change"] == pytest.approx(
        -0.1
    )
    assert figures["tiny/sparsity_forcing/dense_accuracy_change"] == pytest.approx(-0.02)
    assert figures["tiny/zipvl/image_average"] == pytest.approx(70.0)
    assert figures["tiny/zipvl/image_text_average"] == pytest.approx(70.0)
    assert figures["tiny/zipvl/video_token_ratio_percent"] == pytest.approx(80.0)
    return folder


class Links(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [given[name] or "" for name in ("href", "src") if name in given]
        self.ids += [given["id"] or ""] if "id" in given else []


def test_the_page_needs_no_other_file(report: Path) -> None:
    page = Links()
    page.feed((report / "index.html").read_text(encoding="utf-8"))
    inside = [link[1:] for link in page.links if link.startswith("#")]
    outside = [link for link in page.links if not link.startswith("#")]
    assert inside == page.ids  # the contents list names every section, in order
    pictures = [link for link in outside if link.startswith("data:image/png;base64,")]
    assert len(pictures) == 10 + ON_GPU
    assert [*set(outside) - {*pictures}] == ["cards/tiny_sparsity_forcing.md"]  # opened by a click
    assert (report / "cards/tiny_sparsity_forcing.md").is_file()


def test_markdown_links_to_pictures_that_are_there(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(pictures) == 10 + ON_GPU
    for picture in pictures:
        assert (report / picture).is_file()
        assert (report / picture).with_suffix(".svg").is_file()


def test_the_tables_are_there_as_csv(report: Path) -> None:
    names = {path.name for path in (report / "tables").iterdir()}
    assert {
        "table1_image.csv",
        "table2_video.csv",
        "overview.csv",
        "equal_token_ratio.csv",
    } <= names
    assert {"benchmarks.csv", "provenance.csv", "times_tiny.csv", "memory_tiny.csv"} <= names
    first = (report / "tables/table1_image.csv").read_text(encoding="utf-8").splitlines()[1]
    assert first.startswith("tiny,full,measured,100.0,2240 (1960 to 2520),80.0 (70.0 to 90.0)")


def test_an_interval_with_one_in_it_is_no_difference(report: Path) -> None:
    rows = (report / "tables/times_tiny.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1].startswith('shape,"1,024",SDPA flash,10,10,no difference (0.91 to 1.11)')
    assert rows[2].startswith('shape,"2,048",SDPA flash,10,5,2.00 (2.00 to 2.00)')
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "prefill from 2,048 tokens on" in text
    assert "decoding at no measured length" in text


def test_the_text_says_what_the_figures_are(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "synthetic stand-ins" in text
    assert "| token ratio at p = 0.975 (%) | 80.0 | 70.0 | -10.0" in text.replace("79.9", "80.0")
    assert "3 of 3" in text
    assert "the CPU was busy" in text


def test_what_is_missing_is_not_measured(tmp_path: Path) -> None:
    study = Study(tmp_path / "none", ("tiny",), ("full",), ("sparsity_forcing",), ("all",))
    figures = build_report(study, "mini", tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert figures == {}
    assert text.count("Not measured") == 4 - ON_GPU
    assert "| tiny | full | measured | not measured |" in text
    assert (tmp_path / "report/index.html").is_file()


def test_text_is_escaped(tmp_path: Path) -> None:
    table = Table("t", "a <b> & c", ["k", "v|w"], [[Cell("<script>"), Cell("1", "0 to 2")]])
    page = Page("A & B", ["lead"], [Section("One & two", tables=[table])])
    shown = html(page, tmp_path)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert 'href="#one-two"' in shown
    assert "| k | v\\|w |" in markdown(page)
    assert "| &lt;script&gt; | 1 (0 to 2) |" in markdown(page)


def test_the_stage_reads_what_is_finished_and_nothing_else(tmp_path: Path) -> None:
    from sf.sections import Axes, Benchmarks
    from sf.stages.report import Parameters, inputs

    made_study.write_study(tmp_path / "results/mini")
    parameters = Parameters(
        models=["tiny"],
        objectives=["sparsity_forcing"],
        axes=Axes(methods=["full", "zipvl"], seeds=[0]),
        benchmarks=Benchmarks(source="synthetic", samples=24, suites=["all"]),
        scale="mini",
        results=tmp_path / "results/mini",
        output=tmp_path / "reports/mini",
    )
    (tmp_path / "results/mini/train/tiny/sparsity_forcing/seed0/stage.json").unlink()
    named = inputs(parameters)
    assert all(path == parameters.results / name for name, path in named.items())
    assert set(named) == {
        "prepare",
        "benchmarks",
        "calibrate/tiny",
        "accuracy_curve/tiny/base",
        "accuracy_curve/tiny/sparsity_forcing/seed0",
        "evaluate/tiny/full/all",
        "evaluate/tiny/zipvl/all",
        "evaluate/tiny/sparsity_forcing/seed0/all",
        "profile/tiny",
    }


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path)
    result = study.result("train", model="tiny", objective="sparsity_forcing")
    assert result is not None
    assert list(result.history()["step"]) == [1, 2, 3]


def test_second_questions_stand_beside_their_arms(report: Path) -> None:
    lines = (report / "report.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| tiny | base | 0.9 |"))
    assert row == (
        "| tiny | base | 0.9 | 60.0 | 95.0 | 90.0 | 80.0 | 85.0 | -10.0 (-20.0 to +0.0) | "
        "-15.0 (-25.0 to -5.0) | 80 |"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_papers_ratios_stand_beside_what_was_measured(device: str, tmp_path: Path) -> None:
    """A CPU's figure never fills the GPU's column, nor a short prompt's the one at 200k."""
    made_study.write_profile(tmp_path)
    result = Result("profile", {}, tmp_path, {"key": "0" * 8, "commit": "1" * 8})
    speedup = tmp_path / "tables/speedup.csv"
    text = speedup.read_text(encoding="utf-8")
    (tmp_path / "hardware.json").write_text(f'{{"device": "{device}", "notes": []}}')
    short = beside_the_paper(result, "tiny").rows
    assert [cell.text for cell in short[0]] == [
        *("shape", "decode throughput, sparse / full", "3.3", "not measured"),
        *("2,048", "2.00"),
    ]
    assert [cell.text for cell in short[1]][2:] == ["3", "not measured", "2,048", "4.00"]
    speedup.write_text(text.replace("shape,2048", "shape,200000"), encoding="utf-8")
    long = beside_the_paper(result, "tiny").rows
    wanted = "2.00" if device == "cuda" else "not measured"
    assert [cell.text for cell in long[0]][3:] == [wanted, "200,000", "2.00"]


def test_the_share_of_the_roofline_is_shown(tmp_path: Path) -> None:
    made_study.write_profile(tmp_path)
    result = Result("profile", {}, tmp_path, {"key": "0" * 8, "commit": "1" * 8})
    (row,) = roofline(result, "tiny").rows
    assert [cell.text for cell in row] == [
        *("shape", "2,048", "prefill", "full", "3e+09", "1e+06", "3", "12", "25"),
    ]
