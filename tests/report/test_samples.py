"""The samples of a study: what the page loads, and what Chromium shows of it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import made_study
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from sf.escaping import printable
from sf.evaluation.packed_cells import packed
from sf.report.results import Study
from sf.report.samples import PAGE, samples_sections
from sf.tables import write_parquet

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = "</script><script>document.title = 'broken'</script>\ud800"
STRIP = io.BytesIO()  # two frames of 128 x 64 pixels beside each other
PIL.Image.linear_gradient("L").resize((256, 64)).save(STRIP, "JPEG")
PICTURE = STRIP.getvalue()
PLACES = [[0, 0, 4, 0, 128, 64], [0, 3, 4, 128, 128, 64]]
CELLS = np.ones((3, 2, 2, 4), dtype=bool)
"""Of a video of four frames in two time steps: the first third keeps all."""
CELLS[1, 0, 0, 3] = CELLS[2, 1] = False


def sample(number: int, score: float, reply: str, source: str = "") -> dict[str, Any]:
    return {
        "benchmark": "chartqa", "task": "chartqa", "doc_id": number,
        "source": source or f"digest {number}", "reply": reply, "token_ratio": 0.25,
        "layer_ratios": [0.5, 0.3, 0.1, 0.1], "prompt_tokens": 64, "target": "4", "score": score,
        "kept_cells": [],
    }  # fmt: skip


def write(root: Path) -> Study:
    """Two rows: in question 0 dense is right and sparse wrong; question 2 differs between them."""
    answers = {
        "full": [sample(0, 1.0, SCRIPT), sample(1, 1.0, "4"), sample(2, 1.0, "5")],
        "zipvl": [sample(0, 0.0, "sparse"), sample(1, 0.6, "4"), sample(2, 0.0, "6", "other")],
    }
    answers["full"][0]["token_ratio"] = 1.0
    answers["zipvl"][0]["kept_cells"] = [packed(CELLS)]
    answers["zipvl"][1]["kept_cells"] = [packed(np.ones((3, 3, 1, 1), dtype=bool))]
    for row, samples in answers.items():
        folder = root / f"evaluate/tiny/{row}/all"
        made_study.stamp(folder, "evaluate")
        lines = "".join(json.dumps(line) + "\n" for line in samples)
        (folder / "samples.jsonl").write_text(lines)
    made_study.stamp(root / "previews/all", "previews")
    table = [
        {
            "benchmark": "chartqa",
            "task": "chartqa",
            "doc_id": number,
            "question": f"How many bars are in chart {number}?",
            "picture": b"" if number == 2 else PICTURE,
            "places": json.dumps([] if number == 2 else PLACES),
        }
        for number in range(3)
    ]
    write_parquet(pd.DataFrame(table), root / "previews/all/tables/previews.parquet")
    return Study(root, ("tiny",), ("full", "zipvl"), (), ("all",))


def content(path: Path) -> list[Any]:
    """The arguments of the call in a script."""
    text = path.read_text(encoding="utf-8")
    name, _, rest = text.partition("(")
    assert name in ("questions", "replies")
    assert rest.endswith(");\n")
    return list(json.loads(f"[{rest[:-3]}]"))


def test_a_row_has_its_replies_and_a_benchmark_its_questions(tmp_path: Path) -> None:
    study = write(tmp_path / "results")
    (section,) = samples_sections(study, tmp_path / "report")
    (row,) = section.tables[0].rows
    assert (row[0].text, row[1].text) == ("ChartQA", "3")
    assert row[0].link.startswith(f"{PAGE}#benchmark=chartqa")
    folder = tmp_path / "report/samples/chartqa"
    *names, replies = content(folder / "tiny/full.js")
    assert names == ["chartqa", "tiny", "full"]
    assert [line["reply"] for line in replies] == [printable(SCRIPT), "4", "5"]
    groups = replies[0]["groups"]
    assert groups == {
        "first third (layer 1)": 0.5,
        "middle third (layers 2-3)": pytest.approx(0.2),
        "last third (layer 4)": 0.1,
    }
    _, questions = content(folder / "questions.js")
    assert questions["chartqa 2"] == {
        "question": "How many bars are in chart 2?",
        "picture": "",
        "places": [],
    }
    assert questions["chartqa 1"]["places"] == PLACES
    assert questions["chartqa 1"]["picture"].startswith("data:image/jpeg;base64,/9j/")


def test_a_study_without_samples_has_no_page(tmp_path: Path) -> None:
    made_study.write_scores(tmp_path / "results/evaluate/tiny/full/all", 0.8, 1.0)
    study = made_study.study_at(tmp_path / "results")
    assert samples_sections(study, tmp_path / "report") == []
    assert not (tmp_path / "report").exists()


def body_of(study: Study, folder: Path, choice: str) -> tuple[str, str]:
    """The page in Chromium after a selection, and the content of its <main>."""
    samples_sections(study, folder / "report")
    assert CHROMIUM is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")
    words = [CHROMIUM, *options, f"--user-data-dir={folder}/profile", "--dump-dom"]
    address = f"{(folder / 'report' / PAGE).as_uri()}#benchmark=chartqa&{choice}"
    done = subprocess.run([*words, address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = done.stdout
    return page, page[page.index("<main>") : page.index("</main>")]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("shown", "count", "texts"),
    [
        ("lost", "1 of 4 questions", ["sparse", "full: <b>right</b>, 100.0 % of 64 tokens"]),
        (
            "all",
            "4 of 4 questions",
            [
                *("zipvl: this question was not asked.", "&lt;/script&gt;", "right (score 0.60)"),
                "data:image/jpeg;base64,/9j/",
            ],
        ),
    ],
)
def test_chromium_shows_what_is_chosen(
    shown: str, count: str, texts: list[str], tmp_path: Path
) -> None:
    page, body = body_of(write(tmp_path / "results"), tmp_path, f"shown={shown}")
    assert count in page
    for text in texts:
        assert text in body
    assert "<script" not in body
    assert "<title>Samples</title>" in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_chromium_draws_what_each_group_of_layers_kept(tmp_path: Path) -> None:
    """Frame 0 of the picture is in the first time step, frame 3 in the second one."""
    study = write(tmp_path / "results")
    _, body = body_of(study, tmp_path, "shown=all&second=zipvl")
    assert re.findall(r'aria-label="([^"]*)"', body) == [
        "first third (layer 1): 16 of 16 cells kept",
        "middle third (layers 2-3): 15 of 16 cells kept",
        "last third (layer 4): 8 of 16 cells kept",
    ]
    nothing, one, half = re.findall(r'<path d="([^"]*)"', body)
    assert nothing == ""
    assert one == "M96 0h32v32h-32z"
    assert half == "".join(
        f"M{128 + 32 * column} {32 * row}h32v32h-32z" for row in range(2) for column in range(4)
    )
    for text in (
        "Every token was kept.",
        "No record of kept tokens: this row drops none",
        "The picture does not show the frames that this row was given.",
    ):
        assert text in body
    lines = tmp_path / "results/evaluate/tiny/full/all/samples.jsonl"
    lines.write_text(lines.read_text().replace(', "kept_cells": []', ""))
    _, body = body_of(study, tmp_path, "shown=all&second=zipvl")
    assert "Evaluate this row again: it predates the record of kept tokens." in body
    _, body = body_of(study, tmp_path, "shown=lost&second=zipvl&kept=2")
    assert body.count("<svg") == body.count("last third (layer 4): 8 of 16 cells kept</small>") == 1
    _, body = body_of(study, tmp_path, "shown=lost&second=zipvl&kept=none")
    assert "<svg" not in body
