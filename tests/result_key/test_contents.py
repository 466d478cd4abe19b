"""Files are read by content, once; damaged records do not count."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sf.atomic_files import write_json
from sf.errors import DataError
from sf.layout import STAMP, work_folder
from sf.result_key import contents
from sf.result_key.contents import damaged, file_digests, input_digest
from sf.result_key.stamp import read_record, read_stamp


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A finished result whose files were written a while ago."""
    folder = tmp_path / "results/base"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text("{}")
    work_folder(folder).mkdir()
    write_json(folder / STAMP, {"key": "k", "files": file_digests(folder, work_folder(folder))})
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed; files settle at once."""
    names: list[str] = []
    hashed = contents.hashlib.file_digest

    def counted(stream, digest):  # type: ignore[no-untyped-def]
        names.append(Path(stream.name).name)
        return hashed(stream, digest)

    monkeypatch.setattr(contents.hashlib, "file_digest", counted)
    monkeypatch.setattr(contents, "SETTLED_NS", 0)
    return names


def test_an_input_is_read_once_as_long_as_its_files_do_not_move(
    result: Path, reads: list[str]
) -> None:
    first = input_digest(result)
    reads.clear()
    assert input_digest(result) == first
    assert reads == []
    os.utime(result / "config.json")
    assert input_digest(result) == first
    assert reads == ["config.json"]


def test_a_copied_checkout_has_the_same_inputs(result: Path, reads: list[str]) -> None:
    copy = result.parent.with_name("copy")
    shutil.copytree(result.parent, copy)
    assert input_digest(copy / "base") == input_digest(result)


def flip(path: Path, keep_time: bool = False) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
def test_flipped_bytes_of_an_input_are_an_error_that_names_the_file(
    result: Path, reads: list[str], keep_time: bool
) -> None:
    input_digest(result)
    flip(result / "weights.bin", keep_time)
    with pytest.raises(DataError, match=r"base/weights\.bin'.*differs.*run its stage again"):
        input_digest(result)
    assert damaged(result, read_stamp(result / STAMP)["files"]) == ["weights.bin"]


def test_a_file_written_this_moment_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times may stay the same after the next change: file systems count in steps."""
    file = tmp_path / "rows.json"
    file.write_text("[1]")
    known = contents.Contents(tmp_path / contents.CACHE)
    known.digest(file, "rows.json")
    assert known.known == {}
    later = contents.time.time_ns() + 10 * contents.SETTLED_NS
    monkeypatch.setattr(contents.time, "time_ns", lambda: later)
    known.digest(file, "rows.json")
    assert list(known.known) == ["rows.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json.*missing"),
        (lambda folder: (folder / STAMP).unlink(), "is incomplete"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_an_incomplete_input_is_an_error(result: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    change(result)
    with pytest.raises(DataError, match=message):
        input_digest(result)


def test_another_file_counts_by_its_bytes(tmp_path: Path, reads: list[str]) -> None:
    file, work = tmp_path / "rows.json", tmp_path / ".job.work"
    file.write_text("[1]")
    first = input_digest(file, work)
    os.utime(file, (1, 1))
    assert input_digest(file, work) == first
    file.write_text("[2]")
    os.utime(file, (1, 1))
    assert input_digest(file, work) != first


def test_a_damaged_cache_is_no_cache(result: Path, reads: list[str]) -> None:
    first = input_digest(result)
    for text in ("", "[]", '{"weights.bin": 3}', '{"weights.bin": []}', "\xff"):
        (work_folder(result) / contents.CACHE).write_bytes(text.encode("latin-1"))
        assert input_digest(result) == first


def test_inputs_that_cannot_be_written_beside_are_read_each_time(
    result: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: object) -> None:
        raise PermissionError(path)

    first = input_digest(result)
    (work_folder(result) / contents.CACHE).unlink(missing_ok=True)
    monkeypatch.setattr(contents, "write_json", refuse)
    assert input_digest(result) == first


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b'{"key": "k"}', b'{"files": []}',
     b'{"key": 3, "files": {}}', b'{"files": {"a": 3}}', b'{"files": {"a": [1]}}',
     b'{"files": {"a": ["1", "x"]}}', b"\x00" * 4096],
)  # fmt: skip
def test_a_damaged_record_is_named_and_does_not_count(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / STAMP
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{STAMP} is damaged"):
        assert read_stamp(path) is None


def test_an_absent_record_is_no_warning(tmp_path: Path) -> None:
    assert read_stamp(tmp_path / STAMP) is None
    assert read_record(tmp_path / STAMP) is None
