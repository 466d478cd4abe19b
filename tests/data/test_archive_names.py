"""Members of archives under any name, and nothing written or read outside the data root."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from clips import record, write_picture
from sources import prepared, used, write_source

from sf.data.archives import ArchiveIndex
from sf.data.media import media_digest, media_size, open_media, split_reference
from sf.errors import DataError

CONTENT = b"some bytes"


def zip_with(path: Path, raw: bytes, utf8: bool = False) -> None:
    """A zip of one member whose stored name is exactly `raw`."""
    place = "N" * len(raw)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(place, CONTENT)
    data = path.read_bytes().replace(place.encode(), raw)
    if utf8:
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            where = data.index(mark) + offset
            flags = struct.unpack_from("<H", data, where)[0] | 0x800
            data = data[:where] + struct.pack("<H", flags) + data[where + 2 :]
    path.write_bytes(data)


def tar_with(path: Path, *members: tuple[str, bytes], link: tuple[str, str] | None = None) -> None:
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(info)


PLAIN = ("a/b.png", "./a/b.png", "/a/b.png", "//a/b.png", "a//b.png", "././a/./b.png")
NAMES = {
    "a/b.png": [name.encode() for name in (*PLAIN, "a\\b.png", ".\\a\\b.png")],
    "图/猫.png": ["图/猫.png".encode(code) for code in ("utf-8", "gb18030")],
    "圖/貓.png": ["圖/貓.png".encode(code) for code in ("utf-8", "big5")],
    "写真/犬.png": ["写真/犬.png".encode(code) for code in ("utf-8", "shift_jis")],
    "사진.png": ["사진.png".encode(code) for code in ("utf-8", "euc_kr")],
    "é/à.png": [*("é/à.png".encode(code) for code in ("utf-8", "cp1252", "cp850"))],
    "e\u0301.png": [name.encode() for name in ("é.png", "e\u0301.png")],
    "кот.png": ["кот.png".encode(code) for code in ("cp1251", "cp866")],
}
CASES = [(wanted, raw) for wanted, raws in NAMES.items() for raw in raws]


@pytest.mark.parametrize(("wanted", "raw"), CASES)
def test_a_zip_member_is_there_under_every_name(tmp_path, wanted, raw):
    zip_with(tmp_path / "x.zip", raw)
    reference = ArchiveIndex(tmp_path).find(wanted)
    assert reference is not None
    reference.encode("utf-8")  # goes into parquet
    joined = tmp_path / reference  # a Path drops "//" and "./"
    assert media_size(joined) == len(CONTENT)
    with open_media(joined) as stream:
        assert stream.read() == CONTENT


def test_a_name_marked_as_utf8_is_taken_as_such(tmp_path):
    zip_with(tmp_path / "x.zip", "é.png".encode(), utf8=True)
    assert ArchiveIndex(tmp_path).find("é.png")
    assert ArchiveIndex(tmp_path).find("Ã©.png") is None


@pytest.mark.parametrize(("wanted", "raw"), CASES)
def test_a_tar_member_is_there_under_every_name(tmp_path, wanted, raw):
    tar_with(tmp_path / "x.tar", (raw.decode("utf-8", "surrogateescape"), CONTENT))
    for _ in range(2):  # the second time from the record
        unpacked, refused = ArchiveIndex(tmp_path).unpack_tars([wanted])
        assert refused == {}
        unpacked[wanted].encode("utf-8")
        assert (tmp_path / unpacked[wanted]).read_bytes() == CONTENT
        assert (tmp_path / unpacked[wanted]).resolve().is_relative_to(tmp_path / "x.tar.unpacked")


def test_rows_over_oddly_named_members_are_all_used(tmp_path):
    root = write_source(tmp_path / "data", [record(n, path=f"pictures/{n}.png") for n in range(6)])
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        for number, form in enumerate(("./{}", "//{}", "/{}", "././{}", "{}", "./{}")):
            picture = write_picture(tmp_path / f"{number}.png", shade=number)
            name = form.format(f"pictures/{number}.png")  # write() would strip its slashes
            archive.writestr(zipfile.ZipInfo(name), picture.read_bytes())
    out, figures = prepared(root, tmp_path)
    assert figures["rows_rejected"] == 0
    assert len(used(out)) == 6


@pytest.mark.parametrize("folder", ["wow!", "a.zip!", "x!/y!"])
def test_a_folder_that_ends_in_an_exclamation_mark_is_a_folder(tmp_path, folder):
    picture = write_picture(tmp_path / "data" / folder / "1.png")
    if folder == "a.zip!":
        zip_with(tmp_path / "data/a.zip", b"other.png")
    assert split_reference(picture) == (str(picture), "")
    assert media_digest(picture)
    root = write_source(tmp_path / "data", [record(1, path=f"{folder}/1.png")])
    out, _ = prepared(root, tmp_path)
    assert used(out)["1"].media == f"{folder}/1.png"


def test_a_file_name_may_have_the_other_unicode_form(tmp_path):
    write_picture(tmp_path / "data" / "e\u0301.png")
    root = write_source(tmp_path / "data", [record(1, path="é.png")])
    out, _ = prepared(root, tmp_path)
    assert used(out)["1"].media_path.is_file()


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.png").write_bytes(b"secret")
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "root").mkdir()
    tar_with(tmp_path / "root/a.tar", ("d/x.png", CONTENT), ("y.png", CONTENT))
    return tmp_path / "root"


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_link_in_place_of_the_folder_is_refused(root, outside):
    (root / "a.tar.unpacked").symlink_to(outside)
    with pytest.raises(DataError, match=r"a\.tar\.unpacked.*symbolic link"):
        ArchiveIndex(root).unpack_tars(["d/x.png"])
    assert content_of(outside) == {"secret.png": b"secret"}


@pytest.mark.parametrize("planted", ["d", "y.png", "y.png.partial", "index.json.partial"])
def test_links_in_the_folder_lead_nowhere(root, outside, planted):
    target = outside if planted == "d" else outside / "secret.png"
    (root / "a.tar.unpacked").mkdir()
    (root / "a.tar.unpacked" / planted).symlink_to(target)
    unpacked, refused = ArchiveIndex(root).unpack_tars(["d/x.png", "y.png"])
    assert content_of(outside) == {"secret.png": b"secret"}
    assert (root / unpacked["y.png"]).read_bytes() == CONTENT
    assert not (root / unpacked["y.png"]).is_symlink()
    if planted == "d":
        assert "link" in refused["d/x.png"]
    else:
        assert (root / unpacked["d/x.png"]).read_bytes() == CONTENT


@pytest.mark.parametrize("planted", ["d", "y.png"])
def test_a_planted_record_makes_no_link_a_member(root, outside, planted):
    folder = root / "a.tar.unpacked"
    folder.mkdir()
    (folder / planted).symlink_to(outside if planted == "d" else outside / "secret.png")
    state = (root / "a.tar").stat()
    stamp = [state.st_size, state.st_mtime_ns]
    (folder / "index.json").write_text(
        json.dumps({"stamp": stamp, "members": ["d/secret.png", "y.png"]})
    )
    unpacked, _ = ArchiveIndex(root).unpack_tars(["d/secret.png", "y.png"])
    assert "d/secret.png" not in unpacked
    assert (root / unpacked["y.png"]).read_bytes() == CONTENT


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stamp": 1}', '{"stamp": [1], "members": 3}'])
def test_a_damaged_record_is_written_again(root, text):
    (root / "a.tar.unpacked").mkdir()
    (root / "a.tar.unpacked/index.json").write_text(text)
    unpacked, _ = ArchiveIndex(root).unpack_tars(["y.png"])
    assert (root / unpacked["y.png"]).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "..\\up.png"])
def test_a_member_that_leads_out_is_not_written(tmp_path, name):
    (tmp_path / "root").mkdir()
    tar_with(tmp_path / "root/a.tar", (name, CONTENT), ("ok.png", CONTENT))
    unpacked, refused = ArchiveIndex(tmp_path / "root").unpack_tars(["up.png", "ok.png"])
    assert list(unpacked) == ["ok.png"]
    assert not list(tmp_path.rglob("up.png"))
    assert "leads out" in refused.get("up.png", "leads out")


def test_a_link_among_the_members_has_its_reason(tmp_path):
    tar_with(tmp_path / "a.tar", ("x.png", CONTENT), link=("l.png", "/etc/passwd"))
    unpacked, refused = ArchiveIndex(tmp_path).unpack_tars(["x.png", "l.png"])
    assert list(unpacked) == ["x.png"]
    assert "links are not followed" in refused["l.png"]


def test_members_with_impossible_names_cost_only_themselves(tmp_path):
    long = "n" * 300 + ".png"
    members = (("f", CONTENT), ("f/x.png", CONTENT), (long, CONTENT), ("ok.png", CONTENT))
    tar_with(tmp_path / "a.tar", *members)
    unpacked, refused = ArchiveIndex(tmp_path).unpack_tars(["f", "f/x.png", long, "ok.png"])
    assert set(unpacked) == {"f", "ok.png"}
    assert set(refused) == {"f/x.png", long}


def test_a_zip_that_zipfile_cannot_read_is_named(tmp_path):
    zip_with(tmp_path / "x.zip", b"\xff\xfe.png", utf8=True)
    zip_with(tmp_path / "y.zip", b"a.png")
    index = ArchiveIndex(tmp_path)
    assert index.damaged.keys() == {"x.zip"}
    assert index.find("a.png") is not None
