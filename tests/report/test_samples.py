"""The samples of a study: what the page loads, and what Chromium shows of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import made_study
import pandas as pd
import pytest

from sf.escaping import printable
from sf.report.results import Study
from sf.report.samples import PAGE, samples_sections
from sf.tables import write_parquet

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = "</script><script>document.title = 'broken'</script>\ud800"
PICTURE = (
    b"\xff\xd8\xff\xdb\x00C\x00" + b"\x01" * 64 + b"\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01"
    b"\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00?\x00\xd2\xcf \xff\xd9"
)


def sample(number: int, score: float, reply: str, source: str = "") -> dict[str, Any]:
    return {
        "benchmark": "chartqa", "task": "chartqa", "doc_id": number,
        "source": source or f"digest {number}", "reply": reply, "token_ratio": 0.25,
        "layer_ratios": [0.5, 0.3, 0.1, 0.1], "prompt_tokens": 64, "target": "4", "score": score,
    }  # fmt: skip


def write(root: Path) -> Study:
    """Two rows: dense is right where sparse is wrong in question 0; 2 was asked otherwise."""
    answers = {
        "full": [sample(0, 1.0, SCRIPT), sample(1, 1.0, "4"), sample(2, 1.0, "5")],
        "zipvl": [sample(0, 0.0, "sparse"), sample(1, 0.6, "4"), sample(2, 0.0, "6", "other")],
    }
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
            "picture": PICTURE if number else b"",
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
    assert questions["chartqa 0"] == {"question": "How many bars are in chart 0?", "picture": ""}
    assert questions["chartqa 1"]["picture"].startswith("data:image/jpeg;base64,/9j/")


def test_a_study_without_samples_has_no_page(tmp_path: Path) -> None:
    made_study.write_scores(tmp_path / "results/evaluate/tiny/full/all", 0.8, 1.0)
    study = made_study.study_at(tmp_path / "results")
    assert samples_sections(study, tmp_path / "report") == []
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("shown", "count", "texts"),
    [
        ("lost", "1 of 4 questions", ["sparse", "full: <b>right</b>, 25.0 % of 64 tokens"]),
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
    samples_sections(write(tmp_path / "results"), tmp_path / "report")
    page = (tmp_path / "report" / PAGE).as_uri()
    assert CHROMIUM is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")
    words = [CHROMIUM, *options, f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    address = f"{page}#benchmark=chartqa&shown={shown}"
    done = subprocess.run([*words, address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    body = done.stdout[done.stdout.index("<main>") : done.stdout.index("</main>")]
    assert count in done.stdout
    for text in texts:
        assert text in body
    assert "<script" not in body
    assert "<title>Samples</title>" in done.stdout
