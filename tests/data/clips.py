"""Media files written by the tests."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    num_frames: int,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    gop: int = 12,
) -> Path:
    """A clip whose frame n has brightness 4 n, so that frames can be told apart after decoding."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(num_frames):
            pixels = np.full((size[1], size[0], 3), min(255, 4 * number), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def turn_clip(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into an MP4's track header, as a phone does; entries are -1, 0, 1."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    assert data[header] == 0, "version 0 of the box is expected"
    place = header + 40  # version and flags, times, id, duration, layer, group, volume
    unturned = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert data[place : place + 36] == unturned
    entries = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *entries)
    path.write_bytes(data)
    return path


def write_audio(path: Path) -> Path:
    """A file that holds sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for _ in range(8):
            silence = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate = 16_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def record(number: int, **changes: object) -> dict:
    """A good row of Video-R1-260k's schema; `changes` replace or, if None, remove keys."""
    row: dict = {
        "problem_id": number,
        "problem": f"Which colour is shape {number}?",
        "data_type": "image",
        "problem_type": "multiple choice",
        "options": ["A. red", "B. blue"],
        "solution": "<answer>B</answer>",
        "path": f"./pictures/{number}.png",
        "data_source": "shapes",
        "process": "",
    }
    row.update(changes)
    return {key: value for key, value in row.items() if value is not None}


def write_picture(path: Path, size: tuple[int, int] = (56, 56), shade: int = 90) -> Path:
    """A picture with some detail, so that cutting it off loses pixels."""
    import PIL.Image

    noise = np.random.default_rng(shade).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(noise).save(path)
    return path


def write_broken(folder: Path) -> None:
    """{cut,empty,text}.{png,mp4}, cut.jpg and sound.mp4, each unusable; whole.* can be used."""
    import PIL.Image

    write_picture(folder / "whole.png")
    PIL.Image.open(folder / "whole.png").save(folder / "whole.jpg")
    write_clip(folder / "whole.mp4", 30)
    for suffix in ("png", "jpg", "mp4"):
        data = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    for suffix in ("png", "mp4"):
        (folder / f"empty.{suffix}").touch()
        (folder / f"text.{suffix}").write_text("no media")
    write_audio(folder / "sound.mp4")
