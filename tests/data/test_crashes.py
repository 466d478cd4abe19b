"""A decoder that crashes or hangs costs one row, which is named; the pass continues."""

from __future__ import annotations

import shutil

import crashing_decoders
import pytest
from clips import record, write_clip, write_picture
from sources import prepared, reasons, used, write_source

from sf.data import check, inspection

KINDS = {"abort": "SIGABRT", "hang": "did not end within 2 s"}


@pytest.mark.parametrize("suffix", ["png", "mp4"])
def test_a_crash_costs_one_row(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(inspection, "inspect", crashing_decoders.inspect)
    monkeypatch.setattr(check, "TIME_LIMIT_S", 2.0)
    root = tmp_path / "data"
    names = [*KINDS, *(str(number) for number in range(6))]
    first = root / f"media/{names[0]}.{suffix}"
    first.parent.mkdir(parents=True)
    write_clip(first, 12) if suffix == "mp4" else write_picture(first)
    for name in names[1:]:
        shutil.copy(first, first.with_stem(name))
    kind = "video" if suffix == "mp4" else "image"
    rows = [record(n, path=f"./media/{x}.{suffix}", data_type=kind) for n, x in enumerate(names)]
    out, _ = prepared(write_source(root, rows), tmp_path)
    assert used(out).keys() == {"2", "3", "4", "5", "6", "7"}
    rejected = reasons(out)
    assert rejected.keys() == {"0", "1"}
    for number, why in enumerate(KINDS.values()):
        assert rejected[str(number)].startswith("unreadable media")
        assert why in rejected[str(number)]


def test_a_decoder_that_takes_too_much_memory_costs_one_row(tmp_path, monkeypatch, vision):
    def bomb(path: str) -> None:
        bytearray(2**62)

    write_picture(tmp_path / "a.png")
    monkeypatch.setattr(inspection, "load_image_and_format", bomb)
    facts = inspection.inspect(tmp_path, "a.png", "image", vision)
    assert facts.error == "decoding it takes more than 8 GiB"
