"""Figure 7: examples by the stated rule, and pictures of exactly the cells in a record."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import made_study
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from sf.errors import DataError
from sf.evaluation.packed_cells import packed, unpacked
from sf.report.definitions import Row
from sf.report.example_picture import (
    ALL_KEPT,
    NO_RECORD,
    OLDER,
    OTHER_FRAMES,
    PANEL,
    Shown,
    example_picture,
    kept_of,
    shown_of,
)
from sf.report.results import Study
from sf.report.table_pages import write_table_page
from sf.tables import write_parquet

OWN = Row(name="sparsity_forcing", as_published="sparsity_forcing", trained=True)
FULL = Row(name="full", as_published="full", trained=False)
STRIP = io.BytesIO()
PIL.Image.linear_gradient("L").resize((64, 32)).save(STRIP, "JPEG")
CELLS = np.ones((2, 1, 2, 4), dtype=bool)
CELLS[0, 0, 0, 1:] = CELLS[1, 0, 1] = False


def sample(benchmark: str, number: int, score: float, **changed: Any) -> dict[str, Any]:
    task = "mmmu_pro_standard" if benchmark == "mmmu_pro" else benchmark
    return {
        "benchmark": benchmark, "task": task, "doc_id": number, "score": score, "target": "4",
        "source": f"{benchmark} {number}", "reply": f"reply {number}", "prompt_tokens": 64,
        "token_ratio": 0.25, "layer_ratios": [0.5, 0.0], "kept_cells": [packed(CELLS)], **changed,
    }  # fmt: skip


DENSE = [
    sample("chartqa", 10, 1.0), sample("chartqa", 2, 1.0), sample("chartqa", 1, 1.0),
    sample("mme", 0, 0.0), sample("mmmu_pro", 3, 1.0), sample("mmstar", 5, 1.0),
    sample("pope", 0, 1.0), sample("textvqa_val", 0, 1.0),
    sample("mmmu_pro", 1, 1.0, task="mmmu_pro_vision"),
]  # fmt: skip
SPARSE = [
    sample("chartqa", 10, 0.0), sample("chartqa", 2, 0.4), sample("chartqa", 1, 0.5),
    sample("mme", 0, 0.0), sample("mmmu_pro", 3, 0.0), sample("mmstar", 5, 0.0, source="other"),
    sample("pope", 0, 0.0), sample("textvqa_val", 0, 0.0),
    sample("mmmu_pro", 1, 0.0, task="mmmu_pro_vision"),
]  # fmt: skip


def write(root: Path, dense: list[Any], sparse: list[Any], *, previews: bool = True) -> Study:
    """Both rows' samples, in files whose order is not the questions'."""
    for row, samples in (("full", dense), ("sparsity_forcing/seed0", sparse)):
        folder = root / f"evaluate/tiny/{row}/all"
        made_study.stamp(folder, "evaluate")
        lines = "".join(json.dumps(line) + "\n" for line in samples)
        (folder / "samples.jsonl").write_text(lines)
    if previews:
        made_study.stamp(root / "previews/all", "previews")
        table = [
            {
                **{name: line[name] for name in ("benchmark", "task", "doc_id")},
                "question": f"How $ <b> {line['doc_id']}?",
                "picture": STRIP.getvalue(),
                "places": json.dumps([[0, 0, 1, 0, 64, 32]]),
            }
            for line in dense
        ]
        write_parquet(pd.DataFrame(table), root / "previews/all/tables/previews.parquet")
    return Study(root, ("tiny",), ("full",), ("sparsity_forcing",), ("all",))


def page(study: Study, folder: Path) -> dict[str, Any]:
    write_table_page("figure7", study, [FULL, OWN], folder, "snakemake --cores all figure7")
    content: dict[str, Any] = json.loads((folder / "figure7.json").read_text(encoding="utf-8"))
    return content


def texts(content: dict[str, Any], family: str) -> dict[str, str]:
    (line,) = (line for line in content["lines"] if line["keys"][2] == family)
    cells = (figure["text"] for figure in line["figures"])
    return dict(zip(content["columns"], cells, strict=True))


def test_the_first_question_with_the_outcome_is_the_example(tmp_path: Path) -> None:
    """By benchmark, task and number, not by the file's order.

    TextVQA 0 and question 1 of MMMU-Pro's second task have lower numbers than the examples. Rows
    that were asked different questions under one number (MMStar 5) are not compared.
    """
    content = page(write(tmp_path / "results", DENSE, SPARSE), tmp_path / "page")
    assert texts(content, "text-heavy images") == {
        "questions": "4", "both right": "1", "only full right": "3", "only this row right": "0",
        "both wrong": "0", "first success": "ChartQA 1", "first failure": "ChartQA 2",
    }  # fmt: skip
    assert texts(content, "other images") == {
        "questions": "3", "both right": "0", "only full right": "2", "only this row right": "0",
        "both wrong": "1", "first success": "none",
        "first failure": "MMMU-Pro (mmmu_pro_standard) 3",
    }  # fmt: skip
    assert set(texts(content, "videos").values()) == {""}
    assert content["sentence"] == (
        "tiny: of 7 questions sparsity_forcing answers 5 wrong that full answers right, and 0 the "
        "other way round."
    )
    assert "that full answers right and the row right (success)" in content["notes"][0]
    assert content["notes"][1] == "tiny, sparsity_forcing, other images: there is no success."
    assert len(content["notes"]) == 2


def test_the_caption_of_an_example_states_the_rule(tmp_path: Path) -> None:
    page(write(tmp_path / "results", DENSE, SPARSE), tmp_path / "page")
    drawn = {path.stem for path in (tmp_path / "page/figures").glob("*.png")}
    names = "text-heavy-images_success", "text-heavy-images_failure", "other-images_failure"
    assert drawn == {f"tiny_sparsity_forcing_{name}" for name in names}
    text = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == 3
    assert (
        "<figcaption>Failure, tiny, sparsity_forcing: ChartQA 2, the first question, in the "
        "tables&#39; order of benchmarks and each benchmark&#39;s own order, that full answers "
        "right and sparsity_forcing wrong (text-heavy images).</figcaption>"
    ) in text


def test_a_study_without_failures_says_so(tmp_path: Path) -> None:
    content = page(write(tmp_path / "results", DENSE[:3], DENSE[:3]), tmp_path / "page")
    assert texts(content, "text-heavy images")["first failure"] == "none"
    assert "tiny, sparsity_forcing, text-heavy images: there is no failure." in content["notes"]
    assert len(list((tmp_path / "page/figures").glob("*.png"))) == 1


def test_without_previews_there_are_examples_and_no_pictures(tmp_path: Path) -> None:
    study = write(tmp_path / "results", DENSE, SPARSE, previews=False)
    content = page(study, tmp_path / "page")
    assert texts(content, "text-heavy images")["first failure"] == "ChartQA 2"
    assert content["notes"][-1] == "There are no pictures: the stage previews was not run."
    assert not (tmp_path / "page/figures").exists()


def test_exactly_the_kept_cells_keep_their_pixels() -> None:
    preview = {"picture": STRIP.getvalue(), "places": json.dumps([[0, 0, 1, 0, 64, 32]])}
    shown = shown_of(preview)
    kept = kept_of(sample("chartqa", 0, 1.0), shown)
    assert list(kept.groups) == ["layer 1: 62 % kept", "layer 2: 50 % kept"]
    figure = example_picture(shown, kept, ["Question: $_{$?"])
    (axes,) = figure.axes
    (canvas,) = (np.asarray(image.get_array()) for image in axes.images)
    pixels = shown[0].pixels
    height, width = pixels.shape[:2]
    assert width == PANEL
    tops = np.flatnonzero((canvas[:, 0] != 255).any(-1))
    rows = canvas[tops[0] : tops[0] + height]
    assert (rows[:, :width] == pixels).all()
    for group, cells in enumerate(CELLS[:, 0], start=1):
        panel = rows[:, group * (PANEL + 12) :][:, :width]
        for row, column in np.ndindex(*cells.shape):
            place = slice(row * height // 2 + 4, (row + 1) * height // 2 - 4)
            part = place, slice(column * width // 4 + 4, (column + 1) * width // 4 - 4)
            if cells[row, column]:
                assert (panel[part] == pixels[part]).all()
            else:  # faded to grey
                assert 0 < panel[part].std() < 0.3 * pixels[part].std()
    assert "$_{$" in figure.texts[0].get_text()


@pytest.mark.parametrize(
    ("changed", "frames", "text"),
    [
        ({"kept_cells": []}, 1, NO_RECORD),
        ({"kept_cells": [], "token_ratio": 1.0}, 1, ALL_KEPT),
        ({"kept_cells": None}, 1, OLDER),
        ({"kept_cells": [packed(CELLS)]}, 8, OTHER_FRAMES),
        ({"kept_cells": [packed(np.ones((2, 4, 1, 1), bool))]}, 8, ""),
        ({"kept_cells": [packed(np.ones((2, 8, 1, 1), bool))]}, 8, ""),
    ],
)
def test_a_picture_without_cells_says_why(changed: Any, frames: int, text: str) -> None:
    shown = [Shown(np.zeros((8, 8, 3), np.uint8), 0, frames - 1, frames)]
    kept = kept_of(sample("mme", 0, 1.0, **changed), shown)
    assert kept.text == text
    assert bool(kept.cells) == (text == "")


@pytest.mark.parametrize(("frames", "steps", "frame", "step"), [(8, 4, 5, 2), (8, 8, 5, 5)])
def test_a_frame_shows_the_cells_of_its_time_step(
    frames: int, steps: int, frame: int, step: int
) -> None:
    cells = np.zeros((2, steps, 1, 1), bool)
    cells[1, step] = True
    shown = [Shown(np.zeros((8, 8, 3), np.uint8), 0, frame, frames)]
    kept = kept_of(sample("videomme", 0, 1.0, kept_cells=[packed(cells)]), shown)
    assert [each[..., 0, 0].tolist() for each in kept.cells] == [[False, True]]


def test_a_record_is_read_as_it_was_written() -> None:
    assert (unpacked(packed(CELLS), 2) == CELLS).all()


@pytest.mark.parametrize("text", ["", "1x2", "1x2x4:", "1x2x4:!!", "axbxc:AA==", "1x2x4:AAAAAAAA"])
def test_a_damaged_record_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match="holds no cells of 2 groups"):
        unpacked(text, 2)
