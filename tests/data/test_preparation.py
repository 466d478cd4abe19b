"""From a folder in Video-R1's layout to manifests, through the whole stage."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import PIL.Image
import pytest
from clips import record, write_audio, write_clip, write_picture

from sf.data.budget import visual_tokens
from sf.data.card import summary
from sf.data.manifest import SPLITS, read_manifest
from sf.errors import ConfigError, DataError
from sf.stages import prepare

FIELDS = {
    "image_min_pixels": 784,
    "image_max_pixels": 12544,
    "video_min_pixels": 784,
    "video_max_pixels": 12544,
    "video_max_frames": 4,
    "video_fps": 2.0,
    "synthetic_rows": 50,
    "data_sources": [],
    "sample_rows": 0,
    "calibration_share": 0.2,
    "heldout_share": 0.2,
    "calibration_rows": 1000,
    "heldout_rows": 1000,
    "media_check": True,
    "max_reject_share": 1.0,
    "seed": 0,
}


class Figures(SimpleNamespace):
    """Takes the figures that a stage reports."""

    def summary(self, values: dict[str, float]) -> None:
        self.values = values


def parameters(source: Path | str, folder: Path, **changes) -> prepare.Parameters:
    values = {**FIELDS, "source": str(source), "output": folder / "result", **changes}
    return prepare.Parameters(**values)


def prepared(source: Path | str, folder: Path, **changes) -> tuple[Path, dict[str, float]]:
    """Prepare without the data card; returns the results folder and the figures."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    done = prepare.write_manifests(parameters(source, folder, **changes), folder / "out")
    return folder / "out", summary(done)


def write_source(root: Path, records: list[dict]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "Video-R1-260k.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return root


def used(out: Path) -> dict[str, object]:
    return {row.id: row for split in SPLITS for row in read_manifest(out / f"{split}.parquet")}


def reasons(out: Path) -> dict[str, str]:
    table = pd.read_parquet(out / "rejects.parquet")
    return dict(zip(table["id"], table["kind"] + ": " + table["reason"], strict=True))


@pytest.fixture(scope="module")
def good_source(tmp_path_factory):
    """Forty rows over 30 pictures and 10 clips."""
    root = tmp_path_factory.mktemp("good")
    records = []
    for number in range(40):
        if number % 4:
            write_picture(root / f"pictures/{number}.png", shade=number)
            records.append(record(number))
        else:
            (root / "clips").mkdir(exist_ok=True)
            write_clip(root / f"clips/{number}.mp4", 12)
            records.append(
                record(
                    number,
                    data_type="video",
                    path=f"./clips/{number}.mp4",
                    problem_type="numerical",
                    options=[],
                    solution="<answer>1,234</answer>",
                )
            )
    return write_source(root, records)


def test_good_rows_all_arrive_with_their_facts(good_source, tmp_path, vision):
    out, figures = prepared(good_source, tmp_path)
    rows = used(out)
    assert sorted(rows, key=int) == [str(n) for n in range(40)]
    assert figures["rows_rejected"] == 0
    assert figures["rows_read"] == 40
    assert sum(figures[f"rows_{split}"] for split in SPLITS) == 40
    picture, clip = rows["1"], rows["4"]
    assert (picture.width, picture.height, picture.num_frames) == (56, 56, 1)
    assert (picture.codec, picture.answer) == ("png", "B")
    assert picture.visual_tokens == 4
    assert (clip.width, clip.height, clip.num_frames, clip.codec) == (64, 48, 12, "mpeg4")
    assert clip.fps == pytest.approx(10)
    assert clip.duration_s == pytest.approx(1.2)
    assert clip.answer == "1234"
    bounds = vision.model_copy(update={key: FIELDS[key] for key in type(vision).model_fields})
    assert clip.visual_tokens == visual_tokens("video", 64, 48, 12, 10.0, bounds)
    assert clip.media_path == good_source / "clips/4.mp4"
    assert not list(out.rglob("*.mp4"))  # no media are copied


def test_stage_writes_card_tables_and_pictures(good_source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    job = SimpleNamespace(out=out, state=tmp_path / "state", tracker=Figures())
    prepare.run(parameters(good_source, tmp_path), job)
    assert job.tracker.values["rows_read"] == 40
    card = (out / "data_card.md").read_text()
    assert "40 rows read, 0 rejected" in card
    linked = [line.split("(")[1].rstrip(")") for line in card.splitlines() if line[:2] == "!["]
    assert "figures/example_multiple_choice_image.png" in linked
    assert all((out / name).is_file() for name in linked)
    counts = pd.read_csv(out / "tables/counts.csv")
    assert counts["rows"].sum() == 40
    dataset = json.loads((out / "dataset.json").read_text())
    assert json.loads(dataset["profile"])["num_train"] > 0


def bad_rows(root: Path) -> list[tuple[dict, str]]:
    """Rows with one fault each, and what the reason must say."""
    pictures, clips = root / "pictures", root / "clips"
    pictures.mkdir(parents=True)
    clips.mkdir()
    whole = write_picture(pictures / "whole.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    PIL.Image.open(pictures / "whole.png").save(pictures / "whole.jpg")
    whole = (pictures / "whole.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.png").touch()
    (pictures / "text.png").write_text("hello")
    PIL.Image.new("1", (20_000, 20_000)).save(pictures / "bomb.png")
    PIL.Image.new("RGB", (900, 3)).save(pictures / "flat.png")
    outside = write_picture(root.parent / "outside" / "secret.png")
    (pictures / "link.png").symlink_to(outside)
    (root / "linked").symlink_to(outside.parent)
    (pictures / "folder.png").mkdir()
    whole = write_clip(clips / "whole.mp4", 30).read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (clips / "empty.mp4").touch()
    write_audio(clips / "sound.mp4")

    def at(path: str, **changes: object) -> dict:
        kind = "video" if path.endswith("mp4") else "image"
        return {"path": path, "data_type": kind, **changes}

    numeric = {"problem_type": "numerical", "options": []}
    faults: list[tuple[dict, str]] = [
        (at("./pictures/cut.png"), "unreadable media: .*decoded"),
        (at("./pictures/cut.jpg"), "unreadable media: .*decoded"),
        (at("./pictures/empty.png"), "empty media"),
        (at("./pictures/text.png"), "unreadable media"),
        (at("./pictures/bomb.png"), "bomb"),
        (at("./pictures/flat.png"), "200 times"),
        (at("./pictures/none.png"), "missing media"),
        (at("./pictures/link.png"), "symbolic link"),
        (at("./linked/secret.png"), "symbolic link"),
        (at("./pictures/folder.png"), "no file"),
        (at("./clips/cut.mp4"), "unreadable media"),
        (at("./clips/empty.mp4"), "empty media"),
        (at("./clips/sound.mp4"), "audio only"),
        (at("./pictures/whole.png", data_type="video"), "no video format"),
        (at("../outside/secret.png"), "path traversal"),
        (at("./pictures/../../outside/secret.png"), "path traversal"),
        (at(str(outside)), "path traversal"),
        (at("C:/x.png"), "path traversal"),
        (at("pictures\\whole.png"), "bad path"),
        (at("a" * 3000), "bad path"),
        (at(""), "empty value"),
        ({"problem": None}, "missing key: .*problem"),
        ({"solution": None, "data_source": None}, "missing key: .*solution, data_source"),
        ({"problem": "  "}, "empty value"),
        ({"problem": 7}, "wrong type"),
        ({"problem": "What is <|image_pad|>?"}, "control token"),
        ({"problem_type": "essay"}, "unknown problem type: .*essay"),
        ({"data_type": "audio"}, "unknown data type: .*audio"),
        ({"options": "A"}, "wrong type: options"),
        ({"options": ["A. red"]}, "bad options"),
        ({"options": None}, "bad options"),
        ({"solution": "<answer>C</answer>"}, "bad answer: .*lack the answer's letter"),
        ({"solution": "B"}, "bad answer: .*<answer>"),
        ({"solution": "<answer> </answer>"}, "bad answer: .*empty"),
        ({**numeric, "solution": "<answer>about 3</answer>"}, "bad answer: .*number"),
        ({**numeric, "solution": "<answer>nan</answer>"}, "bad answer: .*number"),
    ]
    return faults


def test_each_bad_row_has_its_reason_and_nothing_else_is_lost(tmp_path):
    import re

    root = tmp_path / "data"
    faults = bad_rows(root)
    for name in ("first", "last"):
        write_picture(root / f"pictures/{name}.png", shade=len(name))
    records = [record(1000, path="./pictures/first.png")]
    records += [record(number, **changes) for number, (changes, _) in enumerate(faults)]
    records.append(record(1001, path="./pictures/last.png"))
    records.append(record(1000, path="./pictures/last.png", problem="Another?"))
    records.append(
        record(1002, path="./pictures/last.png", problem=f"which colour  is Shape {1001}")
    )
    (write_source(root, records) / "Video-R1-260k.json").write_bytes(
        (root / "Video-R1-260k.json").read_bytes().rstrip()[:-1] + b', 7, {"problem_id": 2000, oops'
    )
    out, figures = prepared(root, tmp_path)
    assert set(used(out)) == {"1000", "1001"}
    table = pd.read_parquet(out / "rejects.parquet")
    said = (table["kind"] + ": " + table["reason"]).groupby(table["id"]).first()
    for number, (changes, pattern) in enumerate(faults):
        assert re.search(pattern, said[str(number)]), (changes, said[str(number)])
    assert said["1000"].startswith("duplicate id: ")
    assert said["1002"].startswith("duplicate question: ")
    kinds = set(table["kind"])
    assert {"not an object", "truncated JSON"} <= kinds
    assert figures["rows_read"] == len(table) + 2
    assert figures["rejected_path_traversal"] == 4


def test_too_many_rejects_stop_the_stage_and_leave_the_reasons(tmp_path):
    root = tmp_path / "data"
    for number in range(3):
        write_picture(root / f"pictures/{number}.png", shade=number)
    write_source(root, [record(number) for number in range(4)])
    with pytest.raises(
        DataError, match=r"1 of 4.*0\.1 may be rejected \(missing media: 1"
    ) as caught:
        prepared(root, tmp_path, max_reject_share=0.1)
    assert "raise prepare.max_reject_share" in str(caught.value)
    assert len(reasons(tmp_path / "out")) == 1
    out, _ = prepared(root, tmp_path, max_reject_share=0.25)
    assert len(used(out)) == 3


@pytest.mark.parametrize("content", [b"", b"[]", b"<html></html>"])
def test_no_rows_is_one_clear_error(tmp_path, content):
    root = write_source(tmp_path / "data", [])
    (root / "Video-R1-260k.json").write_bytes(content)
    with pytest.raises(DataError):
        prepared(root, tmp_path)


@pytest.mark.parametrize("source", ["missing", "empty"])
def test_no_annotations_is_one_clear_error(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"prepare\.source"):
        prepared(tmp_path / source, tmp_path)


@pytest.mark.parametrize("source", ["hub:name", "hub:a/b", "hub:a/b@", "hub:../b@c d"])
def test_malformed_hub_source_is_refused(tmp_path, source):
    with pytest.raises(ConfigError, match="REVISION"):
        prepared(source, tmp_path)


def test_sides_must_leave_something_to_train_on(good_source, tmp_path):
    with pytest.raises(ConfigError, match="heldout_share"):
        prepared(good_source, tmp_path, calibration_share=0.5, heldout_share=0.5)


def test_sources_and_sample(good_source, tmp_path):
    out, figures = prepared(good_source, tmp_path / "a", data_sources=["clips"])
    assert {row.data_type for row in used(out).values()} == {"video"}
    assert figures["rows_unselected"] == 30
    with pytest.raises(DataError, match=r"none of the 40 rows.*data_sources"):
        prepared(good_source, tmp_path / "c", data_sources=["nothing"])
    assert figures["rows_rejected"] == 0
    out, _ = prepared(good_source, tmp_path / "b", sample_rows=20)
    kinds = [row.data_type for row in used(out).values()]
    assert (kinds.count("video"), kinds.count("image")) == (5, 15)


def test_media_are_not_opened_when_told_so(good_source, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(good_source, root)
    (root / "pictures/1.png").write_text("not an image")
    out, figures = prepared(root, tmp_path, media_check=False)
    assert figures["rows_rejected"] == 0
    assert used(out)["1"].visual_tokens == 0


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
    with pytest.raises(DataError, match=r"more\.zip"):
        prepared(root, tmp_path)


def test_llava_video_layout(tmp_path):
    root = tmp_path / "data"
    folder = root / "0_30_s_academic_v0_1"
    (folder / "academic_source").mkdir(parents=True)
    write_clip(folder / "academic_source/x.mp4", 12)
    talk = [
        {
            "from": "human",
            "value": "<image>\nWhat moves?\nA. a car\nB. a dog\nPlease provide your "
            "answer by stating the letter followed by the full option.",
        },
        {"from": "gpt", "value": "B. a dog"},
        {"from": "human", "value": "Where does it go?"},
        {"from": "gpt", "value": "To the left."},
    ]
    rows = [
        {"id": "x-1", "conversations": talk, "video": "academic_source/x.mp4", "data_source": "s"},
        {"id": "x-2", "conversations": talk[:1], "video": "academic_source/x.mp4"},
        {"id": "x-3", "conversations": talk[:2], "video": "../x.mp4"},
    ]
    (folder / "academic_mc_v0_1_qa_processed.json").write_text(json.dumps(rows))
    out, _ = prepared(root, tmp_path)
    rows = used(out)
    assert set(rows) == {"x-1#0", "x-1#1"}
    choice, text = rows["x-1#0"], rows["x-1#1"]
    assert (choice.problem, choice.answer) == ("What moves?", "B")
    assert choice.options == ("A. a car", "B. a dog")
    assert (text.problem_type, text.answer) == ("free-form", "To the left.")
    assert choice.media == "0_30_s_academic_v0_1/academic_source/x.mp4"
    said = reasons(out)
    assert said["x-2"].startswith("bad conversation")
    assert said["x-3#0"].startswith("path traversal")


def test_benchmark_media_are_kept_out(tmp_path):
    root, benchmarks = tmp_path / "data", tmp_path / "benchmarks"
    names = ["fFjv93ACGo8", "video_2564", "12", "free"]
    for name in names:
        write_picture(root / f"pictures/{name}.png", shade=len(name))
    write_source(root, [record(n, path=f"./pictures/{name}.png") for n, name in enumerate(names)])
    (benchmarks / "perceptiontest_val/videos").mkdir(parents=True)
    (benchmarks / "perceptiontest_val/videos/video_2564.mp4").touch()
    (benchmarks / "mmmu").mkdir()
    (benchmarks / "mmmu/12.jpg").touch()
    pd.DataFrame({"videoID": ["fFjv93ACGo8"], "question": ["free"]}).to_parquet(
        benchmarks / "videomme.parquet"
    )
    out, figures = prepared(root, tmp_path, benchmarks=benchmarks)
    assert set(used(out)) == {"2", "3"}
    assert reasons(out)["0"].startswith("benchmark leakage: ")
    assert "videomme.parquet" in reasons(out)["0"]
    assert figures["benchmark_name_matches"] == 3


def test_killed_media_pass_goes_on(good_source, tmp_path, monkeypatch):
    from sf.data import check

    opened: list[str] = []
    real = check.inspect

    def counting(root, media, *rest):
        opened.append(media)
        if len(opened) > 25:
            raise KeyboardInterrupt
        return real(root, media, *rest)

    monkeypatch.setattr(check, "inspect", counting)
    monkeypatch.setattr(check, "_FLUSH_EVERY", 4)
    with pytest.raises(KeyboardInterrupt):
        prepared(good_source, tmp_path)
    log = tmp_path / "out/media.jsonl"
    checked = len(log.read_text().splitlines())
    assert 0 < checked < 40
    with log.open("a") as file:
        file.write('{"media": "cut by the ki')
    opened.clear()
    monkeypatch.setattr(check, "inspect", lambda *a: (opened.append(a[1]), real(*a))[1])
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


def test_manifests_can_be_moved_with_generated_media(tmp_path):
    from sf.data.manifest import Row, write_manifest

    media = write_picture(tmp_path / "here/data/a.png")
    row = Row("1", "q", "OCR", "image", (), "<answer>x</answer>", "x", "a.png", "s")
    write_manifest(tmp_path / "here/train.parquet", [row], tmp_path / "here/data")
    (tmp_path / "here").rename(tmp_path / "there")
    (read,) = read_manifest(tmp_path / "there/train.parquet")
    assert read.media_path == tmp_path / "there/data/a.png"
    assert read.media_path.is_file()
    assert not media.exists()


@pytest.mark.parametrize("content", [None, b"no parquet", b"PAR1"])
def test_unreadable_manifest_is_one_clear_error(tmp_path, content):
    path = tmp_path / "train.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="manifest"):
        read_manifest(path)
