"""kill -9 during the media pass; the same call then continues and writes the same manifests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from clips import record, write_picture
from sources import prepared, used

from sf.data import check, media_facts
from sf.data.inspection import inspect
from sf.data.manifest import SPLITS, read_manifest
from sf.data.media_facts import media_key
from sf.sections import Prepare
from sf.stages import prepare

NUM_MEDIA = 200
PROGRAM = """
import sys
from pathlib import Path
from sf.stages.prepare import Parameters, write_manifests
write_manifests(Parameters.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


def count_opened(monkeypatch, end_after: int | None = None) -> list[str]:
    """The media that the pass opens from now on; it is interrupted after `end_after` of them."""
    opened: list[str] = []
    real = check.run_isolated

    def counting(function, calls, seconds, **options):
        for index, facts in real(function, calls, seconds, **options):
            if len(opened) == end_after:
                raise KeyboardInterrupt
            opened.append(calls[index][1])
            yield index, facts

    monkeypatch.setattr(check, "run_isolated", counting)
    return opened


def test_killed_pass_ends_with_the_same_manifests(tmp_path, vision, monkeypatch):
    root = tmp_path / "data"
    picture = write_picture(root / "pictures/0.png", size=(500, 500))
    for number in range(1, NUM_MEDIA):
        os.link(picture, root / f"pictures/{number}.png")
    (root / "Video-R1-260k.json").write_text(json.dumps([record(n) for n in range(NUM_MEDIA)]))
    p = prepare.Parameters(
        vision=vision,
        evaluation_vision=vision,
        output=tmp_path / "result",
        seed=0,
        prepare=Prepare(
            source=str(root),
            calibration_share=0.2,
            heldout_share=0.2,
            calibration_rows=30,
            heldout_rows=30,
            max_reject_share=0.0,
        ),
    )
    out = tmp_path / "out"
    out.mkdir()
    log = out / "media.jsonl"
    command = [sys.executable, "-c", PROGRAM, p.model_dump_json(), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (log.is_file() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = log.read_bytes().count(b"\n")  # a last line may be cut
    assert 0 < done < NUM_MEDIA
    assert not (out / "train.parquet").exists()

    opened = count_opened(monkeypatch)
    prepare.write_manifests(p, out)
    assert len(opened) == NUM_MEDIA - done
    whole = tmp_path / "whole"
    whole.mkdir()
    prepare.write_manifests(p, whole)
    for split in SPLITS:
        name = f"{split}.parquet"
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert sum(len(read_manifest(out / f"{split}.parquet")) for split in SPLITS) > 0


def test_killed_media_pass_goes_on(good_source, tmp_path, monkeypatch):
    count_opened(monkeypatch, end_after=25)
    monkeypatch.setattr(check, "_FLUSH_EVERY", 4)
    with pytest.raises(KeyboardInterrupt):
        prepared(good_source, tmp_path)
    log = tmp_path / "out/media.jsonl"
    checked = len(log.read_text().splitlines())
    assert 0 < checked < 40
    with log.open("a") as file:
        file.write('{"media": "cut by the ki')
    monkeypatch.undo()
    opened = count_opened(monkeypatch)
    out, _ = prepared(good_source, tmp_path)
    assert len(opened) == 40 - checked
    assert len(used(out)) == 40
    (tmp_path / "result").mkdir()
    shutil.copy(out / "media.jsonl", tmp_path / "result/media.jsonl")
    shutil.rmtree(out)
    opened.clear()
    again, _ = prepared(good_source, tmp_path, heldout_rows=3)
    assert opened == []  # the facts of the earlier result were taken over
    assert len(read_manifest(again / "heldout.parquet")) == 3
    os.utime(good_source / "pictures/1.png")
    prepared(good_source, tmp_path)
    assert opened == ["pictures/1.png"]


def test_what_could_not_be_read_is_tried_again(good_source, tmp_path, monkeypatch):
    """Size and time of a file say nothing about a missing permission or network."""
    failing = {"pictures/1.png", "pictures/2.png"}
    real = check._in_parallel

    def unreachable(*given):
        for facts in real(*given):
            unusable = facts.media in failing
            yield replace(facts, error="cannot be read: stale") if unusable else facts

    monkeypatch.setattr(check, "_in_parallel", unreachable)
    prepared(good_source, tmp_path)
    assert {"1", "2"}.isdisjoint(used(tmp_path / "out"))
    monkeypatch.undo()
    opened = count_opened(monkeypatch)
    out, _ = prepared(good_source, tmp_path)
    assert set(opened) == failing
    assert {"1", "2"} <= used(out).keys()


def test_facts_of_an_older_rule_are_found_again(tmp_path, vision, monkeypatch):
    """Facts of an older rule, such as before videos were turned upright, are not reused."""
    write_picture(tmp_path / "a.png")
    log = check.MediaLog(tmp_path / "media.jsonl")
    log.add([inspect(tmp_path, "a.png", "image", vision)])
    assert log.known("a.png", "image", media_key(tmp_path, "a.png", "image", vision))
    monkeypatch.setattr(media_facts, "FACTS", "a later rule")
    assert not log.known("a.png", "image", media_key(tmp_path, "a.png", "image", vision))
