"""Line files: every text round-trips, a truncated last line is dropped, other damage is named."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf.errors import DataError
from sf.json_lines import append_json_lines, json_line, read_json_lines, write_json_lines

HOSTILE = (
    "a\rb",
    "a\r\nb\n",
    "nul \0 bell \7 escape \x1b[31m",
    "c1 \x9b31m \x85 del \x7f",
    "separators \u2028 \u2029 \x1c \x0b",
    "right to left \u202e mark",
    "half \ud83d and \udc00",
    "\ufeffmark",
    "emoji \U0001f600 中文 é \\u2028",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_every_text_round_trips_in_one_printable_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    append_json_lines(path, [{"reply": text}, {"reply": "next"}])
    assert list(read_json_lines(path)) == [{"reply": text}, {"reply": "next"}]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", path.read_text(encoding="utf-8"))


@given(st.lists(st.text(st.characters(codec=None, exclude_categories=())), max_size=4))
def test_any_text_is_one_line(texts: list[str]) -> None:
    line = json_line({"texts": texts})
    assert len(line.splitlines()) == 1
    line.encode()


def lines(path: Path) -> list[dict[str, int]]:
    return list(read_json_lines(path))


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b'{"step": 3, "lo\n', b"\0\0\0\0", b"\xff\n"])
def test_a_cut_last_line_is_dropped_and_then_replaced(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    with pytest.warns(UserWarning, match=r"history\.jsonl line 3 was cut off"):
        assert lines(path) == [{"step": 1}, {"step": 2}]
    append_json_lines(path, [{"step": 3}])
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_cut_only_line_and_a_cut_long_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for whole in (b"", b'{"step": 1}\n'):
        path.write_bytes(whole + b'{"reply": "' + b"x" * 200_000)
        append_json_lines(path, [{"step": 2}])
        assert path.read_bytes() == whole + b'{"step": 2}\n'


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lines(path) == [{"step": 1}]
    append_json_lines(path, [{"step": 2}])
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_earlier_damage_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2.*is not a JSON object"):
        lines(path)


def test_an_object_that_is_no_record_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"other": 2}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2.*is not a record"):
        list(read_json_lines(path, lambda fields: fields["step"]))


def test_blank_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content in (b"", b"\n\n"):
        path.write_bytes(content)
        assert lines(path) == []
        append_json_lines(path, [{"step": 1}])
        assert lines(path) == [{"step": 1}]


def test_a_whole_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_json_lines(path, [{"a": text} for text in HOSTILE])
    assert [line["a"] for line in read_json_lines(path)] == list(HOSTILE)
    with pytest.raises(TypeError):
        write_json_lines(path, [{"a": 1}, {"a": object()}])
    assert len(lines(path)) == len(HOSTILE)
