"""Files replaced as a whole: contents, failures, durability."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from sf.atomic_files import read_json, replacing, write_bytes, write_json, write_text


def test_content_is_exact(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b.bin", b"\0\r\n\xff")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\0\r\n\xff"
    write_text(tmp_path / "t.md", "a\rb\r\nc\u2028\x1b[31m")
    assert (tmp_path / "t.md").read_bytes().decode() == "a\rb\r\nc\u2028\x1b[31m"


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "t.md", "half \ud83d")
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == "half \\ud83d"


def test_json_is_sorted_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1.5], "a": "\r\ud800"})
    assert read_json(tmp_path / "a.json") == {"a": "\r\ud800", "b": [1.5]}
    assert (tmp_path / "a.json").read_text().startswith('{\n "a"')


@pytest.mark.parametrize("content", [b"", b'{"key": ', b"\0\0\0", b"\xff\xfe"])
def test_damaged_json_names_its_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stage.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"stage\.json is not valid JSON"):
        read_json(tmp_path / "stage.json")


@pytest.mark.parametrize("shared", [False, True])
def test_a_failed_writer_leaves_the_old_file_alone(tmp_path: Path, shared: bool) -> None:
    target = tmp_path / "t.txt"
    write_text(target, "old")

    def interrupted() -> None:
        with replacing(target, shared=shared) as part:
            part.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".t.txt.part").write_text("half")
    write_text(tmp_path / "t.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_shared_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "t.txt"
    with replacing(target, shared=True) as first, replacing(target, shared=True) as second:
        assert first != second
        first.write_text("one")
        second.write_text("two")
    assert target.read_text() == "one"
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_content_is_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_text(tmp_path / "t.txt", "new")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_full_disk_is_not_taken_for_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t.txt"
    write_text(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(target, "new")
    assert target.read_text() == "old"
