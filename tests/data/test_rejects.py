"""Bad input of every kind: each row gets its reason, and no other row is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import PIL.Image
import pytest
from clips import record, write_broken, write_picture
from sources import prepared, reasons, used, write_source

from sf.errors import ConfigError, DataError


def bad_rows(root: Path) -> list[tuple[dict, str]]:
    """Rows with one fault each, and what the reason must say."""
    pictures = root / "pictures"
    pictures.mkdir(parents=True)
    write_broken(pictures)
    PIL.Image.new("1", (20_000, 20_000)).save(pictures / "bomb.png")
    PIL.Image.new("RGB", (900, 3)).save(pictures / "flat.png")
    outside = write_picture(root.parent / "outside" / "secret.png")
    (pictures / "link.png").symlink_to(outside)
    (root / "linked").symlink_to(outside.parent)
    (pictures / "folder.png").mkdir()

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
        (at("./pictures/cut.mp4"), "unreadable media"),
        (at("./pictures/empty.mp4"), "empty media"),
        (at("./pictures/sound.mp4"), "audio only"),
        (at("./pictures/whole.png", data_type="video"), "video format is not supported"),
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
    recorded = (table["kind"] + ": " + table["reason"]).groupby(table["id"]).first()
    for number, (changes, pattern) in enumerate(faults):
        assert re.search(pattern, recorded[str(number)]), (changes, recorded[str(number)])
    assert recorded["1000"].startswith("duplicate id: ")
    assert recorded["1002"].startswith("duplicate question: ")
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
