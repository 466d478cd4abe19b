"""Media that no stage opened, as under lmms-eval's own command: a bad one costs its row, named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crashing_decoders
import crashing_decord
import cv2
import isolated_calls
import pytest
from damaged_home import change_column, damage
from datasets import Image
from scripted import BOUNDS, VISION

from sf.data import check, inspection
from sf.evaluation import media as lmms_eval_media
from sf.evaluation import opencv_properties, qwen_vl_media, readable, unopened, video_capture
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.model import SparseChatModel
from sf.evaluation.source import prepare_source
from sf.evaluation.tasks import benchmark_home, build_task

DECODE, CAPTURE = Image.decode_example, cv2.VideoCapture


@pytest.fixture
def ask(checkpoints: dict[str, Path], copy: Path, tmp_path: Path, monkeypatch) -> Any:
    """Evaluate a task as lmms-eval does on its own; returns replies and token ratios by row."""
    from lmms_eval.evaluator import evaluate

    monkeypatch.setattr(readable, "decode_by_loader", lambda task: None)
    monkeypatch.setattr(video_capture, "isolate_captures", lambda config: None)

    def run(name: str, **changed: Any) -> dict[int, tuple[str, float | None]]:
        path = str(checkpoints["qwen2_5_vl"])
        lm = SparseChatModel(path, batch_size=2, **{**BOUNDS, **changed})  # type: ignore[arg-type]
        task = benchmark_named(name).tasks[0]
        with benchmark_home(copy, tmp_path / "arrow"):
            lmms_task = build_task(task, copy, most_new_tokens=3)
            lm.task_dict[task.name] = lmms_task.dataset
            outcome = evaluate(
                lm, {task.name: lmms_task}, limit=4, bootstrap_iters=0, log_samples=True,
                cli_args=type("Arguments", (), {
                    "output_path": str(tmp_path), "process_with_media": False,
                    "reasoning_tags": None,
                }),
                process_docs_parallel=1,
            )  # fmt: skip
        return {
            each["doc_id"]: (each["resps"][0][0], each["token_counts"][0].get("token_ratio"))
            for each in outcome["samples"][task.name]
        }

    return run


def refused(replies: dict[int, tuple[str, float | None]]) -> list[int]:
    return sorted(row for row, reply in replies.items() if reply == ("", None))


@pytest.mark.parametrize("mark", [b"abort", b"hang"])
def test_images_that_crash_or_hang_a_decoder(ask, copy, monkeypatch, mark) -> None:
    monkeypatch.setattr(unopened, "read_picture", crashing_decoders.read_picture)
    monkeypatch.setattr(unopened, "TIME_LIMIT_S", 1.0)
    damage(copy, "chartqa", lambda content: content + mark, 0, 2)
    with pytest.warns(UserWarning, match=r"2 rows cannot.*\n  chartqa row 0: .*decoder") as warned:
        replies = ask("chartqa")
    assert "chartqa row 2: " in str(warned[0].message)
    assert refused(replies) == [0, 2]
    assert Image.decode_example is DECODE  # undone by `clean`
    assert cv2.VideoCapture is CAPTURE


def test_images_that_are_damaged_or_absent(ask, copy) -> None:
    damage(copy, "chartqa", lambda content: content[:60], 1)

    def lose(pictures: list[Any]) -> None:
        pictures[3] = None

    change_column(copy, "chartqa", "image", lose)
    with pytest.warns(UserWarning, match=r"row 1: .*decoded.*\n.*row 3: its task cannot use it"):
        assert refused(ask("chartqa")) == [1, 3]


@pytest.mark.parametrize("media", ["training", "lmms_eval"])
@pytest.mark.parametrize("mark", ["abort", "hang"])
def test_videos_that_crash_or_hang_a_decoder(ask, copy, monkeypatch, media, mark) -> None:
    monkeypatch.setattr(inspection, "inspect", crashing_decoders.inspect)
    monkeypatch.setattr(qwen_vl_media, "load", crashing_decord.load)
    for module in (check, lmms_eval_media):
        monkeypatch.setattr(module, "TIME_LIMIT_S", 2.0)

    def rename(names: list[str]) -> None:
        (copy / f"egoschema/videos/{names[2]}.mp4").rename(copy / f"egoschema/videos/{mark}.mp4")
        names[2] = mark

    change_column(copy, "egoschema", "video_idx", rename)
    with pytest.warns(UserWarning, match=rf"egoschema_subset row 2: .*{mark}.mp4: .*decoder"):
        assert refused(ask("egoschema", media=media)) == [2]


def test_a_video_that_is_not_there(ask, copy) -> None:
    sorted((copy / "egoschema/videos").iterdir())[0].unlink()
    with pytest.warns(UserWarning, match="row 0: its task cannot use it .*does not exist"):
        assert refused(ask("egoschema")) == [0]


def test_a_video_on_which_opencv_hangs(ask, copy, tmp_path, monkeypatch) -> None:
    """VideoMME's subtitles depend on what OpenCV reports about the video."""
    monkeypatch.setattr(opencv_properties, "properties", isolated_calls.hang)
    monkeypatch.setattr(video_capture, "time_limit_s", lambda path: 0.5)
    video_capture._properties.cache_clear()
    with pytest.warns(UserWarning, match="OpenCV cannot open it: .* did not end"):
        assert refused(ask("videomme_w_subtitle")) == [1, 2]  # row 0 and 3 have no subtitles


def test_the_stage_opens_videos_of_subtitles_in_workers(copy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(opencv_properties, "properties", isolated_calls.hang)
    monkeypatch.setattr(video_capture, "time_limit_s", lambda path: 0.5)
    video_capture._properties.cache_clear()
    names = ["videomme_w_subtitle"]
    with pytest.warns(UserWarning, match="OpenCV cannot open it"):
        source, _ = prepare_source(str(copy), 0, 0, names, VISION, tmp_path, tmp_path)
    assert sorted(source.unreadable["videomme_w_subtitle"]) == [1, 2]
