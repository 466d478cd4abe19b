"""Unusable media give the reason wherever they are opened."""

from __future__ import annotations

import re
from functools import partial

import av
import numpy as np
import PIL.Image
import pytest
from clips import write_broken, write_clip

from sf.data import video
from sf.data.video import load_video, probe_video
from sf.data.vision import load_image
from sf.errors import DataError

REASONS = {
    "cut.png": "decoded",
    "cut.jpg": "decoded",
    "empty.png": "0 bytes",
    "empty.mp4": "0 bytes",
    "text.png": "image format is not supported",
    "text.mp4": "decoded|format",
    "cut.mp4": "decoded|truncated",
    "sound.mp4": "audio only",
    "missing.png": "read",
    "missing.mp4": "read",
}


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_unreadable_media_say_why(tmp_path, vision, name, reason):
    write_broken(tmp_path)
    load = partial(load_video, vision=vision) if name.endswith("mp4") else load_image
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)
    assert re.search(reason, str(caught.value)), str(caught.value)
    assert name in str(caught.value)


def test_playlist_in_disguise_opens_nothing_else(tmp_path, vision):
    real = write_clip(tmp_path / "real.ts", 20, codec="libx264")
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2.0,", real.name, "#EXT-X-ENDLIST"]
    (tmp_path / "fake.mp4").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"video format is not supported|cannot be decoded"):
        load_video(tmp_path / "fake.mp4", vision)


def test_bomb_is_refused_before_it_is_decoded(tmp_path):
    PIL.Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="bomb"):
        load_image(tmp_path / "bomb.png")


def test_truncated_streamable_video_is_noticed(tmp_path):
    """With the index in front (faststart) half a file opens without an error."""
    source = write_clip(tmp_path / "a.mp4", 60, codec="libx264")
    fast = tmp_path / "fast.mp4"
    with (
        av.open(str(source)) as reader,
        av.open(str(fast), "w", options={"movflags": "faststart"}) as writer,
    ):
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    assert probe_video(fast).num_frames == 60
    data = fast.read_bytes()
    fast.write_bytes(data[: int(len(data) * 0.85)])
    with pytest.raises(DataError, match="truncated"):
        probe_video(fast)


@pytest.mark.parametrize("place", ["container", "stream"])
def test_a_title_in_another_encoding_spoils_nothing(tmp_path, vision, place):
    """Old files contain titles in Latin-1 and similar; PyAV would raise UnicodeDecodeError."""
    path = tmp_path / "old.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        (container if place == "container" else stream).metadata["title"] = "Caf-CAFE"
        for number in range(6):
            frame = np.full((48, 64, 3), 40 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.count(b"Caf-CAFE") == 1
    path.write_bytes(data.replace(b"Caf-CAFE", b"Caf\xe9CAFE"))
    frames, _ = load_video(path, vision)
    assert len(frames) == 4


def test_absurd_frames_are_refused_before_they_are_decoded(tmp_path, vision):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = video.MAX_SIDE + 16, 16, "yuv420p"
        frame = np.zeros((16, video.MAX_SIDE + 16, 3), dtype=np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"16400x16 pixels are absurd"):
        load_video(path, vision)
