"""Which finished results are adopted, and what makes a job run again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from counting import STAGE, make_input, run

from sf.errors import DataError
from sf.layout import STAMP, work_folder
from sf.result_key import packages

ROOT = Path(__file__).parent.parent
pytest_plugins = ("counting",)

DAMAGED = [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b'{"key": 3}', b'{"files": {"a": 1}}']


def test_a_finished_job_is_adopted_and_a_changed_one_is_redone(stage: Path) -> None:
    assert run(times=2) == "done"
    output = stage / "results/test/counting"
    stamp = json.loads((output / STAMP).read_text())
    assert stamp["parameters"]["times"] == 2
    assert json.loads((output / "metrics.json").read_text()) == {"times": 2.0}
    assert run(times=2) == "up to date"
    assert run(times=3) == "done"


def test_a_lost_stamp_is_restored_and_a_damaged_file_is_made_again(stage: Path) -> None:
    run(times=2)
    output = stage / "results/test/counting"
    before = (output / STAMP).read_bytes()
    (output / STAMP).unlink()
    assert run(times=2) == "up to date"
    assert (output / STAMP).read_bytes() == before
    (output / "count.txt").write_text("9")
    assert run(times=2) == "done"
    assert (output / "count.txt").read_text() == "2"


def test_changed_code_is_run_again(stage: Path) -> None:
    run()
    (stage / "counting_stage.py").write_text(STAGE + "\n# a comment\n")
    assert run() == "up to date"
    (stage / "counting_stage.py").write_text(STAGE + "\nMORE = 1\n")
    assert run() == "done"


def test_another_version_of_a_package_that_counts_is_run_again(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage / "counting_stage.py").write_text(f"import torch\n{STAGE}")
    installed = {"torch": "2.13.0"}
    monkeypatch.setattr(packages.metadata, "version", lambda name: installed.get(name, "1"))

    def upgrade(version: str) -> str:
        installed["torch"] = version
        packages.counted_version.cache_clear()
        return run()

    try:
        assert upgrade("2.13.0") == "done"
        assert upgrade("2.13.1+cu128") == "up to date"
        assert upgrade("2.14.0") == "done"
    finally:
        packages.counted_version.cache_clear()


def test_an_input_that_is_made_again_with_other_content_is_read_again(stage: Path) -> None:
    source = stage / "rows.json"
    source.write_text("[1]")
    assert run(source=source) == "done"
    os.utime(source, (1, 1))
    assert run(source=source) == "up to date"
    copy = stage / "elsewhere.json"
    copy.write_text("[1]")
    assert run(source=copy) == "up to date"
    source.write_text("[2]")
    os.utime(source, (1, 1))
    assert run(source=source) == "done"


def test_flipped_bytes_of_an_input_stop_the_next_stage_and_its_own_makes_it_again(
    stage: Path,
) -> None:
    result = make_input(stage, "rows")
    assert run(source=result) == "done"
    (result / "count.txt").write_text("7")
    with pytest.raises(DataError, match=r"input/count\.txt.*make study"):
        run(source=result)
    make_input(stage, "rows")
    assert (result / "count.txt").read_text() == "1"
    assert run(source=result) == "up to date"


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_records_are_named_and_cost_at_most_the_result(stage: Path, content: bytes) -> None:
    run(times=2)
    output = stage / "results/test/counting"
    before = (output / STAMP).read_bytes()
    (output / STAMP).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"counting/{STAMP} is damaged"):
        assert run(times=2) == "up to date"  # from the copy in the work folder
    assert (output / STAMP).read_bytes() == before
    for path in (output / STAMP, work_folder(output) / "record.json"):
        path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"record\.json is damaged"):
        assert run(times=2) == "done"
    (work_folder(output) / "record.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"record\.json is damaged"):
        assert run(times=2) == "up to date"
    assert run(times=2) == "up to date"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"another"])
def test_a_damaged_note_of_partial_work_drops_the_work(stage: Path, content: bytes) -> None:
    Path("stop_at").write_text("3")
    with pytest.raises(KeyboardInterrupt):
        run(times=5)
    Path("stop_at").unlink()
    (work_folder(stage / "results/test/counting") / "key").write_bytes(content)
    assert run(times=5) == "done"
    assert (stage / "results/test/counting/calls.txt").read_text() == "5"


def test_a_record_that_was_edited_does_not_hold(stage: Path) -> None:
    run(times=2)
    output = stage / "results/test/counting"
    stamp = json.loads((output / STAMP).read_text())
    for part, value in (
        ("key", "0" * 16),
        ("code", {**stamp["code"], "counting_stage.py": "0"}),
        ("packages", {"torch": "1.0"}),
        ("inputs", {"source": "0"}),
        ("key_parameters", {**stamp["key_parameters"], "times": 3}),
    ):
        (output / STAMP).write_text(json.dumps({**stamp, part: value}))
        assert run(times=2) == "done", part


def test_results_may_be_a_link(stage: Path) -> None:
    (stage / "disk").mkdir()
    (stage / "results").symlink_to(stage / "disk")
    assert run(times=2) == "done"
    assert run(times=2) == "up to date"
    assert (stage / "disk/test/counting" / STAMP).is_file()
    assert run(times=3) == "done"


def test_a_copied_checkout_adopts_everything(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(times=2)
    copy = stage / "copy"
    copy.mkdir()
    shutil.copytree(stage / "results", copy / "results")
    monkeypatch.chdir(copy)
    assert run(times=2) == "up to date"


def test_a_result_that_holds_is_not_written_again(stage: Path) -> None:
    run(times=2)
    output = stage / "results/test/counting"
    before = (output / STAMP).stat().st_mtime_ns
    assert run(times=2) == "up to date"
    assert (output / STAMP).stat().st_mtime_ns == before


def test_changed_data_beside_the_code_are_run_again(stage: Path) -> None:
    (stage / "known.csv").write_text("1")
    (stage / "other.csv").write_text("1")
    (stage / "counting_stage.py").write_text(STAGE + '\nKNOWN = "known.csv"\n')
    assert run() == "done"
    (stage / "other.csv").write_text("2")
    assert run() == "up to date"
    (stage / "known.csv").write_text("2")
    assert run() == "done"


def test_an_input_that_is_absent_or_incomplete_is_an_error(stage: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(source="nowhere")
    Path("half").mkdir()
    with pytest.raises(DataError, match="is incomplete"):
        run(source="half")
