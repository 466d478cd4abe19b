"""Training, calibration and the benchmarks use the same frames, pixels and time stamps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from scripted import BOUNDS

from sf.config import Vision
from sf.data.budget import frame_indices
from sf.data.manifest import Row
from sf.evaluation.answer import encode_rows
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.model import SparseChatModel
from sf.evaluation.run import evaluate_benchmarks
from sf.training.backbone import backbone
from sf.training.encoding import Encoder

NUM_FRAMES, RATE = 51, 12
VISUAL = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


def write_brightening_clip(path: Path) -> None:
    """Frame n has brightness 5 n, and there are more frames than the rule takes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for number in range(NUM_FRAMES):
            picture = np.full((56, 84, 3), 5 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def clips(home: Path, tmp_path: Path) -> Path:
    """A benchmark home whose VideoMME clips are all the same long one."""
    shutil.copytree(home, tmp_path / "home")
    videos = sorted((tmp_path / "home/videomme/data").glob("*.mp4"))
    assert videos
    for path in videos:
        write_brightening_clip(path)
    return tmp_path / "home"


def evaluated(lm: SparseChatModel, clips: Path, work: Path) -> list[dict[str, Any]]:
    """The inputs of every generation while VideoMME is evaluated."""
    heard: list[dict[str, Any]] = []
    generate = lm.model.generate

    def listen(**inputs: Any) -> torch.Tensor:
        heard.append({name: value for name, value in inputs.items() if torch.is_tensor(value)})
        return generate(**inputs)

    lm.model.generate = listen
    evaluate_benchmarks(lm, [benchmark_named("videomme")], clips, work, most_new_tokens=2)
    assert heard
    return heard


def video_positions(
    positions: torch.Tensor, tokens: torch.Tensor, video_token: int
) -> torch.Tensor:
    """Rope positions [3, V] of the video's tokens, counted from its first."""
    media_positions = positions[:, tokens == video_token]
    return media_positions - media_positions[:, :1]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_all_paths_see_the_same_video(
    checkpoints: dict[str, Path], clips: Path, tmp_path: Path, family: str
) -> None:
    lm = SparseChatModel(str(checkpoints[family]), **BOUNDS, batch_size=1, media="training")  # type: ignore[arg-type]
    heard = evaluated(lm, clips, tmp_path / "work")
    vision = Vision(**BOUNDS)
    path = sorted((clips / "videomme/data").glob("*.mp4"))[0]
    row = Row("1", "What?", "free-form", "video", (), "", "x", path.name, "s", str(path.parent))
    (calibrated,) = encode_rows(lm.processor, [row], vision)
    encoder = Encoder(
        lm.model, lm.processor, [row], vision, templates=["answer"], frozen_tower=False
    )
    trained = encoder(0)

    indices = frame_indices(NUM_FRAMES, RATE, vision)
    assert len(indices) == 4
    assert indices[-1] < NUM_FRAMES - 1  # not spread to the last frame, as lmms-eval's own class
    video_token = lm.processor.video_token_id
    expected = calibrated.inputs
    for inputs in heard:
        for name in VISUAL:
            assert (name in inputs) == (name in expected)
            if name in inputs:
                assert torch.equal(torch.as_tensor(inputs[name]), torch.as_tensor(expected[name]))
        for name in ("pixel_values_videos", "video_grid_thw"):
            assert torch.equal(trained.media[name], inputs[name])
        positions, _ = backbone(lm.model).get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            video_grid_thw=inputs["video_grid_thw"],
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
            attention_mask=inputs["attention_mask"],
        )
        assert torch.equal(
            video_positions(positions[:, 0], inputs["input_ids"][0], video_token),
            video_positions(trained.positions, trained.input_ids, video_token),
        )
    if family == "qwen2_5_vl":
        seconds = float(torch.as_tensor(expected["second_per_grid_ts"])[0])
        assert seconds == pytest.approx(2 * NUM_FRAMES / RATE / len(indices), rel=1e-3)


def test_the_other_way_of_sampling_is_seen(
    checkpoints: dict[str, Path], clips: Path, tmp_path: Path
) -> None:
    """The test above can fail: lmms-eval's own sampling spreads frames to the last one."""
    made = {}
    for media in ("training", "lmms_eval"):
        lm = SparseChatModel(str(checkpoints["qwen2_5_vl"]), **BOUNDS, media=media)  # type: ignore[arg-type]
        made[media] = evaluated(lm, clips, tmp_path / media)[0]["pixel_values_videos"]
    assert made["training"].shape == made["lmms_eval"].shape
    assert not torch.allclose(made["training"], made["lmms_eval"], atol=0.05)
