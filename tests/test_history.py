"""The one reader of history.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf.errors import DataError
from sf.history import HISTORY, append_step, history_table, read_history


def test_the_last_line_of_a_repeated_step_counts_as_a_whole(tmp_path: Path) -> None:
    for step, values in ((5, {"kl": 1.0}), (10, {"kl": 2.0, "gate": 1.0}), (10, {"kl": 3.0})):
        append_step(tmp_path, step, values)
    append_step(tmp_path, 7, {"kl": 0.5})
    assert read_history(tmp_path) == {5: {"kl": 1.0}, 7: {"kl": 0.5}, 10: {"kl": 3.0}}
    table = history_table(tmp_path)
    assert table.to_dict("list") == {"step": [5, 7, 10], "kl": [1.0, 0.5, 3.0]}


def test_every_reader_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker and the report take their steps from `read_history`."""
    from sf import tracking
    from sf.report.results import Result

    append_step(tmp_path, 1, {"kl": 2.0, "gate": 1.0})
    append_step(tmp_path, 1, {"kl": 3.0})
    assert Result("train", {}, tmp_path, {}).history().to_dict("list") == {"step": [1], "kl": [3.0]}
    assert tracking.read_history is read_history


def test_half_a_line_of_a_full_disk_does_not_end_a_resumed_job(tmp_path: Path) -> None:
    append_step(tmp_path, 1, {"kl": 1.0})
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"step": 2, "kl')
    with pytest.warns(UserWarning, match="line 2 was cut off"):
        assert read_history(tmp_path) == {1: {"kl": 1.0}}
    append_step(tmp_path, 2, {"kl": 2.0})
    assert read_history(tmp_path) == {1: {"kl": 1.0}, 2: {"kl": 2.0}}


def test_earlier_damage_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"history\.jsonl line 2"):
        read_history(tmp_path)


def test_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
    assert history_table(tmp_path).columns.tolist() == ["step"]
