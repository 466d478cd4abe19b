"""Clips that a phone stored sideways are decoded upright, with the upright size."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from clips import turn_clip, write_clip

from sf.data.budget import visual_tokens
from sf.data.frame_cache import FrameCache
from sf.data.inspection import inspect
from sf.data.orientation import Orientation
from sf.data.video import decode_frames, load_video, probe_video
from sf.data.vision import encode

TURNS = {  # matrix -> what happens to the stored picture, by an independent rule
    "none": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "upside down": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "counter-clockwise": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
}


def marked(width: int = 96, height: int = 64) -> np.ndarray:
    """Black, with a white top left and a red top right quarter: every turn changes it."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[: height // 2, : width // 2] = 255
    picture[: height // 2, width // 2 :, 0] = 255
    return picture


def write_marked(path: Path, turn: str, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuv420p"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(marked(), format="rgb24")))
        container.mux(stream.encode(None))
    return turn_clip(path, *TURNS[turn][0])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("turn", TURNS)
def test_frames_come_out_upright(tmp_path, turn, codec):
    path = write_marked(tmp_path / "a.mp4", turn, codec)
    expected = TURNS[turn][1](marked()).astype(int)
    frames, facts = decode_frames(path, [0, 4, 9])
    assert (facts.width, facts.height) == (expected.shape[1], expected.shape[0])
    assert frames.shape[1:] == expected.shape
    for frame in frames:  # a few pixels at the quarters' edges differ by compression
        assert np.mean(np.abs(frame - expected) > 60) < 0.05


def test_manifest_facts_and_tokens_are_those_of_the_upright_video(tmp_path, vision):
    vision = vision.model_copy(update={"video_max_pixels": 28 * 28 * 40})
    write_marked(tmp_path / "a.mp4", "clockwise")
    facts = inspect(tmp_path, "a.mp4", "video", vision)
    assert (facts.error, facts.width, facts.height) == ("", 64, 96)
    frames, metadata = load_video(tmp_path / "a.mp4", vision)
    assert (metadata.width, metadata.height) == (64, 96)
    assert frames.shape[1:3] == (84, 56)  # 3 x 2 visual tokens, not 2 x 3
    assert visual_tokens("video", 64, 96, 10, 10.0, vision) == 3 * 2 * len(frames) // 2


def test_a_turned_clip_is_encoded_as_its_upright_copy(processor, tmp_path, vision):
    """Grid and pixels equal those of the frames turned by hand."""
    path = write_marked(tmp_path / "a.mp4", "clockwise")
    plain = write_marked(tmp_path / "b.mp4", "none")
    stored, metadata = load_video(plain, vision)
    turned = np.ascontiguousarray(np.rot90(stored, -1, axes=(1, 2)))
    by_hand = [{"type": "video", "video": (turned, metadata)}]
    inputs, expected = (
        encode(processor, [[{"role": "user", "content": content}]], vision)
        for content in ([{"type": "video", "path": str(path)}], by_hand)
    )
    assert torch.equal(inputs["video_grid_thw"], expected["video_grid_thw"])
    gap = (inputs["pixel_values_videos"] - expected["pixel_values_videos"]).abs()
    assert gap.max() < 0.05  # resizing before or after the turn rounds a little differently


def test_the_frame_cache_holds_upright_frames(tmp_path, vision):
    path = write_marked(tmp_path / "a.mp4", "counter-clockwise")
    cache = FrameCache(tmp_path / "cache", 1e9)
    fresh, facts = load_video(path, vision, cache)
    again, kept = load_video(path, vision, cache)
    assert list(cache.folder.glob("*/*.npz"))
    assert np.array_equal(fresh, again)
    assert (kept.width, kept.height) == (facts.width, facts.height) == (64, 96)


def test_a_cover_picture_is_no_video(tmp_path):
    """A song with a cover has a video stream of one picture."""
    from sf.errors import DataError

    path = tmp_path / "song.mp4"
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "cover.png")
    with av.open(str(tmp_path / "cover.png")) as cover, av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        picture = container.add_stream_from_template(cover.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic.value
        packet = next(cover.demux(video=0))
        packet.stream = picture
        container.mux(packet)
        for _ in range(8):
            silence = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate = 16_000
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video, "the file must hold a picture stream for this test"
    with pytest.raises(DataError, match="audio only"):
        probe_video(path)


def test_the_first_frame_need_not_be_the_first_packet(tmp_path):
    """B frames come later than they are shown; the probe waits for a frame."""
    path = turn_clip(write_clip(tmp_path / "a.mp4", 20, codec="libx264"), -1, 0, 0, -1)
    facts = probe_video(path)
    assert facts.num_frames == 20
    assert facts.orientation == Orientation(mirror_x=True, mirror_y=True)
