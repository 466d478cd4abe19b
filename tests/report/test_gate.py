"""What the report says about the dense row above measured and published figures."""

from __future__ import annotations

import json
from pathlib import Path

import made_study
import pandas as pd
import pytest

from sf.report.benchmark_tables import measured
from sf.report.build import build_report
from sf.report.gate import gate
from sf.report.results import Study

MODEL = "qwen2.5-vl-7b"
VISION = {
    "image_min_pixels": 3136,
    "image_max_pixels": 401408,
    "video_min_pixels": 3136,
    "video_max_pixels": 200704,
    "video_max_frames": 32,
    "video_fps": 2.0,
}


def write(root: Path, shift: dict[str, float], *, rows: int = 0, **zipvl: object) -> Study:
    """Real data; the dense row equals the published one except for `shift` (points of 100)."""
    study = Study(root, (MODEL,), ("full", "zipvl"), (), ("all",))
    given = {"source": "hub", "samples": rows}
    made_study.stamp(root / "benchmarks", "benchmarks", benchmarks=given)
    for row in study.methods:
        folder = root / f"evaluate/{MODEL}/{row}/all"
        made_study.write_scores(folder, 0.5, 1.0)
        vision = {**VISION, **(zipvl if row == "zipvl" else {})}
        runtime, own = {"dtype": "bfloat16"}, {"retention_p": 0.975}
        made_study.stamp(folder, "evaluate", vision=vision, runtime=runtime, evaluate=own)
        stamp = json.loads((folder / "stage.json").read_text())
        stamp["versions"]["lmms_eval"] = "0.7.3"
        (folder / "stage.json").write_text(json.dumps(stamp))
        table = measured(study)
        published_rows = table[(table["row"] == "full") & (table["published"] != "n/p")]
        scores = pd.read_csv(
            folder / "tables/scores.csv", dtype=dict.fromkeys(["score", "low", "high"], float)
        )
        scores = scores.set_index("benchmark")
        for line in published_rows.to_dict("records"):
            moved = shift.get(line["benchmark"], 0.0) * line["scale"] / 100
            score, half = float(line["published"]) + moved, line["scale"] / 20
            scores.loc[line["benchmark"], ["score", "low", "high"]] = (
                score,
                score - half,
                score + half,
            )
        scores.reset_index().to_csv(folder / "tables/scores.csv", index=False)
    return study


def notes(study: Study, kind: str = "image") -> list[str]:
    return gate(measured(study), study, kind, generated=False)


def test_a_dense_row_within_the_tolerance_passes(tmp_path: Path) -> None:
    (note,) = notes(write(tmp_path, {"mmstar": 1.4, "mme": -1.4}))
    assert note == (
        f"{MODEL}: the dense row lies within 1.5 points of the published one in all 7 benchmarks "
        "that have both."
    )


def test_a_dense_row_beyond_it_names_columns_and_what_differs(tmp_path: Path) -> None:
    (note,) = notes(write(tmp_path, {"mmstar": -1.6, "mme": 2.0}, rows=24))
    assert "more than 1.5 points of 100 in MME (+2.0), MMStar (-1.6). Sparse rows are not" in note
    for words in (
        "pixels of an image: 3136 to 401408",
        "numbers: bfloat16",
        "versions: lmms_eval 0.7.3, transformers 5.23.0, torch 2.13.0",
        "questions: the first 24 of each task",
        "parsers: those of this lmms-eval version (the parsers of MMStar, OCRBench changed after",
    ):
        assert words in note
    assert "frames" not in note  # of videos only


def test_videos_name_frames(tmp_path: Path) -> None:
    note = notes(write(tmp_path, {"mlvu_dev": 5.0}), "video")[0]
    assert "in MLVU (+5.0)" in note
    assert "pixels of a frame: 3136 to 200704; frames: at most 32 at 2.0 per second" in note
    assert "questions: all" in note
    assert "parsers of VideoMME, VideoMME (sub.), MLVU, VideoMMMU changed" in note


def test_a_sparse_row_with_other_settings_is_named(tmp_path: Path) -> None:
    study = write(tmp_path, {}, video_max_frames=16, image_max_pixels=100352)
    assert notes(study)[1] == (
        f"{MODEL}: zipvl was measured with other settings than full: pixels of an image 3136 to "
        "100352 (not 3136 to 401408)."
    )
    assert "frames at most 16 at 2.0 per second (not at most 32" in notes(study, "video")[1]


def test_columns_without_a_dense_score_are_named(tmp_path: Path) -> None:
    study = write(tmp_path, {})
    path = tmp_path / f"evaluate/{MODEL}/full/all/tables/scores.csv"
    path.write_text("".join(line for line in path.open() if not line.startswith("chartqa")))
    first, second = notes(study)
    assert "in all 6 benchmarks" in first
    assert second == f"{MODEL}: no dense score to compare with a published one in ChartQA."
    (path.parent.parent / "stage.json").unlink()
    assert notes(study) == [f"{MODEL}: no dense score to compare with a published one."]


def test_stand_ins_are_called_what_they_are(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path)
    assert "not comparable" in gate(measured(study), study, "image", generated=True)[0]
    assert "no dense score" in gate(measured(study), study, "image", generated=False)[0]


@pytest.mark.parametrize(
    ("shift", "words"), [(0.0, "lies within 1.5"), (3.0, "not a reproduction")]
)
def test_the_report_says_it_above_the_table(tmp_path: Path, shift: float, words: str) -> None:
    study = write(tmp_path / "results", {"textvqa_val": shift})
    build_report(study, "made", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    header = text[text.index("\n## Table 1: image benchmarks") :]
    assert words in header[: header.index("| model")]
