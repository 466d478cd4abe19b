"""From a folder in Video-R1's layout to manifests, through the whole stage."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from clips import record, write_clip, write_picture
from markdown_it import MarkdownIt
from sources import VISION, parameters, prepared, reasons, used, write_source

from sf.data.budget import visual_tokens
from sf.data.collect import annotation_files, collect
from sf.data.manifest import SPLITS, read_manifest
from sf.data.preparation import drop_leaks
from sf.errors import ConfigError, DataError
from sf.stages import prepare


class Figures(SimpleNamespace):
    """Collects the figures that a stage reports."""

    def summary(self, values: dict[str, float]) -> None:
        self.values = values


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
    bounds = vision.model_copy(update=VISION)
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


def test_examples_on_the_card_show_the_question_as_it_is(tmp_path):
    """Markdown would swallow tags, and run a question and its options together."""
    write_picture(tmp_path / "data/pictures/0.png")
    root = write_source(tmp_path / "data", [record(0, problem="Where is <b> & <image>?")])
    job = SimpleNamespace(out=tmp_path / "out", state=tmp_path / "state", tracker=Figures())
    job.out.mkdir()
    all_for_training = {"heldout_share": 1e-9, "calibration_share": 1e-9}
    prepare.run(parameters(root, tmp_path, **all_for_training), job)
    card = (job.out / "data_card.md").read_text()
    assert "> Where is &lt;b&gt; & &lt;image&gt;?  \n> A. red  \n> B. blue  \n" in card


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=y>\x1b[31m [a](javascript:x) ![i](http://x/y.png) "
    "| `c` </td> &lt;b&gt; $x$ <http://x> \r # head"
)


def test_text_of_a_row_is_only_text_on_the_card(tmp_path):
    """No tag, link, picture, cell or escape sequence in a row's text takes effect on the page."""
    write_picture(tmp_path / "data/pictures/0.png")
    row = record(0, problem=HOSTILE, options=[f"A. {HOSTILE}", "B. blue"], data_source=HOSTILE)
    row["problem_id"] = HOSTILE
    root = write_source(tmp_path / "data", [row])
    job = SimpleNamespace(out=tmp_path / "out", state=tmp_path / "state", tracker=Figures())
    job.out.mkdir()
    all_for_training = {"heldout_share": 1e-9, "calibration_share": 1e-9}
    prepare.run(parameters(root, tmp_path, **all_for_training), job)
    card = (job.out / "data_card.md").read_text(encoding="utf-8")
    assert card.count("alert(1)") >= 4
    assert "\x1b" not in card
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    for mark in ("<script", "onerror=y>", "<a ", 'src="http', "<code>", "</td> "):
        assert mark not in page, mark
    assert page.count("<img ") == card.count("](figures/")


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
    text, choice = sorted(used(out).values(), key=lambda row: row.problem_type)
    assert choice.id.startswith("x-1#")
    assert choice.id != text.id
    assert (choice.problem, choice.answer) == ("What moves?", "B")
    assert choice.options == ("A. a car", "B. a dog")
    assert (text.problem_type, text.answer) == ("free-form", "To the left.")
    assert choice.media == "0_30_s_academic_v0_1/academic_source/x.mp4"
    rejected = reasons(out)
    assert rejected["x-2"].startswith("bad conversation")
    (refused,) = (reason for name, reason in rejected.items() if name.startswith("x-3#"))
    assert refused.startswith("path traversal")


def test_llava_video_ids_name_videos_not_questions(tmp_path):
    """A video has records in the multiple-choice and the open-ended file, several in each."""
    root = tmp_path / "data"
    folder = root / "0_30_s_academic_v0_1"
    (folder / "source").mkdir(parents=True)
    write_clip(folder / "source/x.mp4", 12)

    def asked(question, reply):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]
        return {"id": "x", "video": "source/x.mp4", "conversations": turns}

    choice = [asked("What moves?\nA. a car\nB. a dog", reply) for reply in ("B", "B. a dog")]
    open_ended = [asked("What moves?", "A dog."), asked("Where to?", "To the left.")]
    for kind, rows in (("mc", choice), ("oe", [*open_ended, open_ended[0]])):
        (folder / f"academic_{kind}_v0_1_qa_processed.json").write_text(json.dumps(rows))
    out, figures = prepared(root, tmp_path)
    asked_for = sorted((row.problem_type, row.problem) for row in used(out).values())
    assert asked_for == [
        ("free-form", "What moves?"),
        ("free-form", "Where to?"),
        ("multiple choice", "What moves?"),
    ]
    assert figures["rejected_duplicate_question"] == figures["rejected_duplicate_id"] == 1


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


def test_names_that_the_benchmarks_stage_found_are_looked_for(tmp_path):
    """Data in the hub's cache have no folder, only the stage's list of names."""
    root, result = tmp_path / "data", tmp_path / "benchmarks"
    write_picture(root / "pictures/video_2564.png")
    write_source(root, [record(0, path="./pictures/video_2564.png")])
    (result / "tables").mkdir(parents=True)
    names = result / "tables" / "media_names.csv"
    for content, rejected, words in (
        ("perceptiontest_val,video_2564\nmme,\n", True, "name no media: mme."),
        ("mme,\nchartqa,\n", False, "Leakage was not checked: the benchmarks' tables name no"),
    ):
        names.write_text("task,name\n" + content)
        collected = collect(annotation_files(root), root)
        leaks, sentence = drop_leaks(collected, result)
        assert words in sentence
        assert [row.id for row in collected.rows] == [] if rejected else ["0"]
        assert [leak.benchmark for leak in leaks] == ["perceptiontest_val"] * rejected


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


@pytest.fixture(scope="module")
def copied_source(tmp_path_factory):
    """Thirty pictures, each under two names; the second names are in an archive."""
    root = tmp_path_factory.mktemp("copied")
    records = []
    with zipfile.ZipFile(root / "again.zip", "w") as archive:
        for number in range(30):
            picture = write_picture(root / f"first/{number}.png", shade=number)
            archive.write(picture, f"again/{number}.png")
            for place, folder in enumerate(("first", "again")):
                records.append(record(2 * number + place, path=f"./{folder}/{number}.png"))
    return write_source(root, records)


def sides(out: Path) -> dict[int, str]:
    return {
        int(row.id): split for split in SPLITS for row in read_manifest(out / f"{split}.parquet")
    }


def test_copies_under_another_name_stay_on_one_side(copied_source, tmp_path):
    out, figures = prepared(copied_source, tmp_path / "checked")
    splits = sides(out)
    assert len(splits) == 60
    assert len(set(splits.values())) == 3
    assert all(splits[2 * pair] == splits[2 * pair + 1] for pair in range(30))
    assert figures["media_copies"] == 30


def test_the_card_says_how_media_are_told_apart(copied_source, tmp_path):
    job = SimpleNamespace(out=tmp_path / "out", state=tmp_path / "state", tracker=Figures())
    job.out.mkdir()
    prepare.run(parameters(copied_source, tmp_path), job)
    assert "30 files are copies" in (tmp_path / "out/data_card.md").read_text()
