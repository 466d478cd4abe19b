"""Media in zip and tar archives."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from clips import record, write_picture
from sources import prepared, reasons, used, write_source

from sf.data.manifest import SPLITS, read_manifest
from sf.errors import DataError


def _zip(root: Path, folder: str, archive: Path, base: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted((root / folder).rglob("*")):
            opened.write(path, path.relative_to(base))
    shutil.rmtree(root / folder)


@pytest.mark.parametrize("relative_to", ["root", "folder", "beside"])
def test_zipped_media_are_read_in_place(good_source, tmp_path, relative_to):
    plain, _ = prepared(good_source, tmp_path / "plain")
    root = tmp_path / "data"
    shutil.copytree(good_source, root)
    if relative_to == "root":
        _zip(root, "clips", root / "all.zip", root)
    elif relative_to == "folder":
        _zip(root, "clips", root / "clips.zip", root / "clips")
    else:
        (root / "inner").mkdir()
        _zip(root, "clips", root / "inner" / "x.zip", root)
    before = sorted(path for path in root.rglob("*"))
    out, figures = prepared(root, tmp_path / "zipped")
    assert figures["rows_rejected"] == 0
    assert sorted(path for path in root.rglob("*")) == before  # nothing was unpacked
    for split in SPLITS:  # packing media moves no row
        one, two = (read_manifest(folder / f"{split}.parquet") for folder in (out, plain))
        assert [row.id for row in one] == [row.id for row in two]
    row, other = used(out)["4"], used(plain)["4"]
    assert "!/" in row.media
    assert (row.width, row.num_frames, row.visual_tokens) == (
        other.width,
        other.num_frames,
        other.visual_tokens,
    )


def test_tar_is_unpacked_once_and_only_where_needed(good_source, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(good_source, root)
    (root / "clips/unused.mp4").write_bytes(b"not asked for")
    with tarfile.open(root / "videos.tar.gz", "w:gz") as archive:
        archive.add(root / "clips", "clips")
    shutil.rmtree(root / "clips")
    out, figures = prepared(root, tmp_path / "a")
    assert figures["rows_rejected"] == 0
    unpacked = root / "videos.tar.gz.unpacked"
    assert used(out)["4"].media_path == unpacked / "clips/4.mp4"
    assert not (unpacked / "clips/unused.mp4").exists()

    def no_second_time(*args: object, **named: object) -> None:
        raise AssertionError("the archive was read again")

    monkeypatch.setattr(tarfile, "open", no_second_time)
    again, _ = prepared(root, tmp_path / "b")
    assert used(again).keys() == used(out).keys()


def test_archive_outside_the_root_is_not_read(tmp_path):
    root = tmp_path / "data"
    picture = write_picture(tmp_path / "outside/pictures/0.png")
    with zipfile.ZipFile(tmp_path / "outside/all.zip", "w") as archive:
        archive.write(picture, "pictures/0.png")
    write_source(root, [record(0)])
    (root / "all.zip").symlink_to(tmp_path / "outside/all.zip")
    with pytest.raises(DataError, match="missing media: 1"):
        prepared(root, tmp_path, max_reject_share=0.5)
    assert reasons(tmp_path / "out")["0"].startswith("missing media")


def test_member_that_is_a_bomb_is_refused(tmp_path):
    root = write_source(tmp_path / "data", [record(0)])
    with zipfile.ZipFile(root / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pictures/0.png", bytes(65 * 2**20))
    with pytest.raises(DataError, match="unreadable media: 1"):
        prepared(root, tmp_path, max_reject_share=0.5)
    assert "decompression bomb" in reasons(tmp_path / "out")["0"]


def test_damaged_archives_and_members(tmp_path):
    root = tmp_path / "data"
    write_picture(root / "pictures/0.png")
    write_source(root, [record(0), record(1)])
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.writestr("pictures/1.png", (root / "pictures/0.png").read_bytes())
    data = bytearray((root / "more.zip").read_bytes())
    data[200] ^= 0xFF
    (root / "more.zip").write_bytes(bytes(data))
    out, _ = prepared(root, tmp_path)
    assert "CRC" in reasons(out)["1"]
    assert set(used(out)) == {"0"}
    (root / "more.zip").write_bytes(b"no archive")
    out, _ = prepared(root, tmp_path)
    assert re.search(r"damaged archives: more\.zip \(.*zip", reasons(out)["1"])
    assert set(used(out)) == {"0"}


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz"])
def test_a_tar_gives_what_lies_before_its_damage(tmp_path, kind):
    root = tmp_path / "data"
    for number in range(6):
        write_picture(root / f"pictures/{number}.png", (200, 200), shade=number)
    write_source(root, [record(number) for number in range(6)])
    name = "all.tar" + kind[1:].replace(":", ".")
    with tarfile.open(root / name, kind) as archive:
        for number in range(6):
            archive.add(root / f"pictures/{number}.png", f"pictures/{number}.png")
    shutil.rmtree(root / "pictures")
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: len(whole) * 6 // 10])
    out, _ = prepared(root, tmp_path)
    assert {"0", "1"} <= used(out).keys() <= {"0", "1", "2", "3"}
    assert used(out).keys() | reasons(out).keys() == {str(number) for number in range(6)}
    assert all(f"damaged archives: {name} (" in reason for reason in reasons(out).values())
    (root / name).write_bytes(whole)
    out, _ = prepared(root, tmp_path)
    assert used(out).keys() == {str(number) for number in range(6)}


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_tar_where_nothing_can_be_written_is_not_called_damaged(
    good_source, tmp_path, monkeypatch, code
):
    """A data root is often mounted read-only; a zip is read there, a tar must be unpacked."""
    root = tmp_path / "data"
    shutil.copytree(good_source, root)
    with tarfile.open(root / "videos.tar", "w") as archive:
        archive.add(root / "clips", "clips")
    shutil.rmtree(root / "clips")
    made = Path.mkdir

    def mkdir(path: Path, *args: object, **named: object) -> None:
        if path.is_relative_to(root):
            raise OSError(code, os.strerror(code), str(path))
        made(path, *args, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(DataError, match=rf"{os.strerror(code)}.*unpack it by hand"):
        prepared(root, tmp_path)
