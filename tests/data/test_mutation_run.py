"""The short form of the mutation run; `mutation_run.py --files 20000` is the long one."""

from __future__ import annotations

from pathlib import Path

import evaluation_run
import mutation_run
import pytest
from mutation_run import run
from reference_clips import CLIPS

pytest.importorskip("lmms_eval")
SIZES = {"image": 60, "video": 12, "json": 20, "archive": 8, "row": 8, "table": 1, "loader": 4}
FEW = [col for col in evaluation_run.STAND_INS if col.name in ("chartqa", "egoschema")]
QUICK = [clip for clip in CLIPS if clip.codec in ("mpeg4", "mpeg2video", "flv")]


@pytest.fixture
def few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips that are encoded quickly."""
    monkeypatch.setattr("mutations.CLIPS", QUICK)
    monkeypatch.setattr(evaluation_run, "STAND_INS", FEW)


@pytest.mark.usefixtures("few_clips")
def test_damaged_files_end_nothing_and_are_rejected_with_true_reasons(tmp_path: Path) -> None:
    total = run(100, tmp_path, SIZES)
    assert total["violations"] == 0, (tmp_path / "batches.jsonl").read_text()
    for data_type in ("image", "video", "json"):
        used, rejected = total[f"{data_type} used"], total[f"{data_type} rejected"]
        assert used + rejected == SIZES[data_type]
        assert used > 0
        assert rejected > 0
    before = (tmp_path / "batches.jsonl").read_bytes()
    assert run(100, tmp_path, SIZES) == total  # nothing is done twice
    assert (tmp_path / "batches.jsonl").read_bytes() == before


@pytest.mark.usefixtures("few_clips")
def test_a_violation_is_noticed_and_its_file_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutation_run, "untrue", lambda *_: "another decoder reads it")
    total = run(10, tmp_path, {**dict.fromkeys(SIZES, 0), "image": 10})
    assert total["violations"] == total["image rejected"] > 0
    assert len(list((tmp_path / "violations").rglob("*.img"))) == total["violations"]
