"""The one log of replies: any text, kills, several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf.errors import DataError
from sf.evaluation.answer import Answer
from sf.evaluation.records import Record, record_log
from sf.evaluation.resumable_log import ResumableLog


def answer(row_id: str, reply: str = "ja") -> Answer:
    return Answer(row_id, "image", "OCR", reply, 1.0, 0.5, (0.4, 0.6), 90, 0.1)


def opened(path: Path) -> ResumableLog[Answer]:
    return ResumableLog(Answer, path)


@pytest.mark.parametrize(
    "reply", ["n\u00e9\n", "a\rb", "\u2028", "\x85", "\0", "\ud83d", "\x1b[31m"]
)
def test_a_log_gives_back_what_was_added(tmp_path: Path, reply: str) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    opened(path).add(
        {("zipvl", 0.1 + 0.2, "1"): answer("1"), ("zipvl", 0.5, "2"): answer("2", reply)}
    )
    log = opened(path)
    assert log.get(("zipvl", 0.5, "2")) == answer("2", reply)
    assert log.get(("zipvl", 0.1 + 0.2, "1")) == answer("1")
    assert log.get(("zipvl", 0.3, "1")) is None
    assert len(log) == 2


@pytest.mark.parametrize("cut", [2, 30, 150])
@pytest.mark.filterwarnings("ignore:.*was cut off")
def test_a_log_that_a_kill_cut_short_loses_only_its_last_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    opened(path).add({("1",): answer("1"), ("2",): answer("2")})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    log = opened(path)
    assert log.get(("1",)) == answer("1")
    assert log.get(("2",)) is None
    log.add({("2",): answer("2")})
    assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    opened(path).add({("1",): answer("1"), ("2",): answer("2")})
    path.write_text(path.read_text().replace('"id": "1"', '"id": '))
    with pytest.raises(DataError, match=r"a\.jsonl line 1"):
        opened(path)


def test_another_kind_of_reply_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    opened(path).add({("1",): answer("1")})
    with pytest.raises(DataError, match=r"line 1.*is not a record"):
        ResumableLog(Record, path)


def test_without_a_file_replies_stay_in_memory() -> None:
    log = record_log(None)
    record = Record("mme", 1, "s", "Yes", 1.0, (1.0,), 9, 2, 8, 0.1, 1)
    log.add({("mme", 1, "s"): record})
    assert log.get(("mme", 1, "s")) == record
    assert len(log) == 1
