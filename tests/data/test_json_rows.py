"""Reading a large JSON file row by row: a fault costs only its row and states its position."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sf.data import json_rows
from sf.data.json_rows import read_rows


def rows_of(data: bytes):
    return list(read_rows(io.BytesIO(data)))


def good(data: bytes):
    return [row.value for row in rows_of(data) if not row.kind]


def faults(data: bytes):
    return [(row.kind, row.reason) for row in rows_of(data) if row.kind]


ROWS = [{"problem_id": n, "problem": f'größe {n} "q" {{[', "options": []} for n in range(5)]
LAYOUTS = {
    "compact": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "indented": lambda rows: json.dumps(rows, ensure_ascii=False, indent=4).encode(),
    "ascii": lambda rows: json.dumps(rows).encode(),
    "jsonl": lambda rows: b"\n".join(json.dumps(row).encode() for row in rows) + b"\n",
    "bom": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_rows(layout):
    assert good(LAYOUTS[layout](ROWS)) == ROWS
    assert faults(LAYOUTS[layout](ROWS)) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_offsets_point_at_the_rows(layout):
    data = LAYOUTS[layout](ROWS)
    for row in rows_of(data):
        value, _ = json.JSONDecoder().raw_decode(data[row.offset :].decode())
        assert value == row.value


@pytest.mark.parametrize("layout", ["compact", "indented"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.77, 0.99])
def test_truncated_file_says_where_and_keeps_what_is_whole(layout, keep):
    data = LAYOUTS[layout](ROWS)
    cut = data[: int(len(data) * keep)]
    values = good(cut)
    assert values == ROWS[: len(values)]
    ((kind, reason),) = faults(cut)
    assert kind == "truncated JSON"
    assert f"byte {len(cut)}" in reason


def test_truncated_between_rows_is_noticed():
    data = LAYOUTS["compact"](ROWS[:2])[:-1]
    assert good(data) == ROWS[:2]
    assert faults(data) == [
        ("truncated JSON", f"the file ends at byte {len(data)} after row 2, before ']'")
    ]


MALFORMED = {
    "missing comma": (b'"options": []}', b'"options" []}'),
    "bare word": (b'"options": []}', b'"options": oops}'),
    "unclosed string": (b'"options": []}', b'"options": "x}'),
    "unclosed row": (b'"options": []}', b'"options": []'),
    "control character": (b'"options": []}', b'"options": "a\nb"}'),
    "huge number": (b'"options": []}', b'"options": ' + b"9" * 5000 + b"}"),
}


@pytest.mark.parametrize("layout", ["compact", "indented", "jsonl"])
@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_row_loses_nothing_else(layout, at, name):
    before, after = MALFORMED[name]
    pieces = LAYOUTS[layout](ROWS).replace(b'"options": []\n    }', before).split(before)
    data = b"".join(
        piece + (b"" if n == len(pieces) - 1 else after if n == at else before)
        for n, piece in enumerate(pieces)
    )
    assert good(data) == [row for n, row in enumerate(ROWS) if n != at]
    ((kind, reason),) = faults(data)
    assert "JSON" in kind
    assert f"row {at + 1}" in reason


def test_bytes_that_are_no_utf8_are_confined_and_located():
    data = LAYOUTS["indented"](ROWS)
    place = data.index("größe 3".encode()) + 2
    data = data[:place] + b"\xff" + data[place + 1 :]
    assert [row["problem_id"] for row in good(data)] == [0, 1, 2, 4]
    assert faults(data) == [("not UTF-8", f"byte 0xff at offset {place} is not UTF-8")]


def test_half_a_surrogate_pair_is_refused():
    assert faults(b'[{"id": "\\ud800"}]')[0][0] == "not UTF-8"
    assert good(b'[{"id": "\\ud83d\\ude00"}]') == [{"id": "\U0001f600"}]


@pytest.mark.parametrize("data", [b"", b"   ", b"[]", b"[ ]\n", "[]".encode("utf-16")])
def test_no_rows(data):
    assert rows_of(data) == []


@pytest.mark.parametrize("data", [b"<html>", b"\x00" * 100, b"[" * 100_000])
def test_what_is_no_json_is_a_fault(data):
    assert good(data) == []
    assert len(faults(data)) == 1


def test_rows_across_chunks(monkeypatch):
    monkeypatch.setattr(json_rows, "_CHUNK", 7)
    monkeypatch.setattr(json_rows, "LONGEST_ROW", 120)
    for layout in LAYOUTS.values():
        assert good(layout(ROWS)) == ROWS
    broken = LAYOUTS["compact"](ROWS).replace(b'"problem_id": 2,', b'"problem_id" 2,')
    assert [row["problem_id"] for row in good(broken)] == [0, 1, 3, 4]


@given(
    rows=st.lists(
        st.fixed_dictionaries({"problem_id": st.integers(), "problem": st.text()}), max_size=8
    ),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
)
@settings(max_examples=60, deadline=None)
def test_any_rows_come_back(rows, ascii_only, indent):
    text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    data = text.encode("utf-8", "surrogatepass")
    whole = [row for row in rows if row["problem"].isprintable() or row["problem"].isascii()]
    read = good(data)
    assert all(row in read for row in whole)
    assert len(read) + len(faults(data)) >= len(rows)


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("layout", ["compact", "jsonl"])
def test_wider_encodings_are_read(layout, encoding, mark):
    text = LAYOUTS[layout](ROWS).decode()
    data = (("\ufeff" if mark else "") + text).encode(encoding)
    assert good(data) == ROWS
    assert faults(data) == []
    for row in rows_of(data):
        value, _ = json.JSONDecoder().raw_decode(data[row.offset :].decode(encoding))
        assert value == row.value


def test_a_damaged_utf_16_row_is_named():
    data = json.dumps(ROWS, ensure_ascii=False).encode("utf-16-le")
    place = data.index("ö".encode("utf-16-le"))
    damaged = data[:place] + b"\x00\xdc" + data[place + 2 :]
    assert good(damaged) == ROWS[1:]
    assert faults(damaged) == [("not UTF-8", f"the bytes at offset {place} are not UTF-16-LE")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html><body>404</body></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
        (b"problem_id,problem,path\n1,What?,a.png\n", "CSV"),
        (b"problem_id\tproblem\tpath\n1\tWhat?\ta.png\n", "CSV"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"PK\x03\x04rest", "zip"),
        (b"PAR1rest", "parquet"),
        (b"\x01\x02\x03\x04", "binary"),
    ],
)
def test_what_is_no_json_is_called_by_its_name(data, words):
    ((kind, reason),) = faults(data)
    assert kind == "not JSON"
    assert words in reason


@pytest.mark.parametrize("junk", [b"\0\0\0\x80", b"\0\x80", b"\x80\0\0\0", b"PK\x03\x04", b"<p>"])
@pytest.mark.parametrize("layout", ["compact", "jsonl"])
def test_damage_at_the_start_costs_no_other_row(layout, junk):
    data = junk + LAYOUTS[layout](ROWS)[len(junk) :]
    assert good(data) == ROWS[1:]
    assert len(faults(data)) == 1


def test_a_row_that_is_too_long_is_said_to_be(monkeypatch):
    monkeypatch.setattr(json_rows, "LONGEST_ROW", 200)
    monkeypatch.setattr(json_rows, "_CHUNK", 100)
    rows = [ROWS[0], {"problem_id": 9, "problem": "x" * 1000}, ROWS[1]]
    data = json.dumps(rows).encode()
    assert good(data) == [ROWS[0], ROWS[1]]
    ((_, reason),) = faults(data)
    assert "is longer than 200 characters" in reason
