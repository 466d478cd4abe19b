"""Clips of many containers, codecs and pixel formats whose frames show their own number."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BITS = 176, 144, 6
COLOURS = (
    (220, 30, 30),
    (30, 200, 30),
    (30, 30, 220),
    (230, 220, 40),
    (200, 200, 200),
    (128, 0, 128),
)


@dataclass(frozen=True)
class Clip:
    """How a clip is written.

    Attributes:
        suffix: of the file; decides the container.
        codec, pixels: encoder and pixel format.
        options: of the encoder.
        container: options of the container.
        matrix, full: colour matrix (ITU-T H.273) and range of the frames.
        size: width and height.
        count: frames.
        irregular: uneven time stamps.
    """

    suffix: str
    codec: str
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    matrix: int = 2
    full: bool = False
    size: tuple[int, int] = (WIDTH, HEIGHT)
    count: int = 24
    irregular: bool = False

    @property
    def name(self) -> str:
        options = (f"{key}={value}" for key, value in self.options.items())
        parts = [self.suffix, self.codec, self.pixels, *options, *self.container.values()]
        parts += [f"matrix{self.matrix}"] if self.matrix != 2 else []
        parts += ["full"] if self.full else []
        parts += ["irregular"] if self.irregular else []
        return "-".join(parts)


def picture(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """RGB uint8 [H, W, 3]: the number as black and white bars above, colours below."""
    width, height = size
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for bar in range(BITS):
        columns = slice(bar * width // BITS, (bar + 1) * width // BITS)
        image[: height // 2, columns] = 255 if number >> bar & 1 else 0
        image[height // 2 :, columns] = COLOURS[bar]
    return image


def read_number(image: np.ndarray) -> int:
    """The number that `picture` wrote."""
    row = image[image.shape[0] // 4].mean(axis=-1)
    centres = [(2 * bar + 1) * len(row) // (2 * BITS) for bar in range(BITS)]
    return sum(int(row[place] > 128) << bar for bar, place in enumerate(centres))


def bar_colours(image: np.ndarray) -> np.ndarray:
    """Mean colours of the lower bars' centres, float [6, 3]."""
    height, width, _ = image.shape
    rows = slice(5 * height // 8, 7 * height // 8)
    centres = [(2 * bar + 1) * width // (2 * BITS) for bar in range(BITS)]
    return np.stack([image[rows, c - 4 : c + 4].mean(axis=(0, 1)) for c in centres])


def stamps(clip: Clip) -> list[int]:
    """Time stamps in tenths of a second."""
    if not clip.irregular:
        return list(range(clip.count))
    return list(np.cumsum([0, *(1 + 3 * (n % 5 == 0) for n in range(clip.count - 1))]))


def _converted(clip: Clip, image: np.ndarray) -> av.VideoFrame:
    """The picture in the clip's pixel format, matrix and range, tagged with them."""
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    if not clip.pixels.startswith(("yuv", "nv", "gray")):
        return frame.reformat(format=clip.pixels)
    matrix = 5 if clip.matrix == 2 else clip.matrix
    full = clip.full or clip.pixels.startswith("yuvj")
    frame = frame.reformat(
        format=clip.pixels,
        src_colorspace=1 if matrix == 5 else 5,  # of RGB: any other one
        dst_colorspace=matrix,
        src_color_range=2,
        dst_color_range=2 if full else 1,
    )
    if clip.matrix != 2 or clip.full:
        frame.colorspace, frame.color_range = clip.matrix, 2 if clip.full else 1
    return frame


def write(clip: Clip, path: Path) -> Path:
    """Write a clip at 10 frames per second."""
    with av.open(str(path), "w", options=clip.container) as container:
        stream = container.add_stream(clip.codec, rate=10, options=dict(clip.options))
        stream.width, stream.height = clip.size
        stream.pix_fmt = clip.pixels
        stream.codec_context.time_base = Fraction(1, 10)
        if clip.matrix != 2 or clip.full:
            stream.codec_context.colorspace = clip.matrix
            stream.codec_context.color_range = 2 if clip.full else 1
        for number, stamp in enumerate(stamps(clip)):
            frame = _converted(clip, picture(number, clip.size))
            frame.pts, frame.time_base = int(stamp), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


_FAST = {"preset": "ultrafast"}
_B = {"preset": "medium", "bf": "2", "g": "8"}
CLIPS = (
    Clip("mp4", "libx264", options=_B),
    Clip("mp4", "libx264", options={**_B, "x264-params": "open-gop=1:scenecut=0"}),
    Clip("mp4", "libx264", options={"preset": "veryfast", "g": "1"}),
    Clip("mp4", "libx264", options={**_FAST, "x264-params": "intra-refresh=1:keyint=8"}),
    Clip("mp4", "libx264", "yuv422p", _FAST),
    Clip("mp4", "libx264", "yuv444p", _FAST),
    Clip("mp4", "libx264", "yuvj420p", _FAST),
    Clip("mp4", "libx264", "nv12", _FAST),
    Clip("mp4", "libx264", "yuv420p10le", _FAST),
    Clip("mp4", "libx264", options=_B, irregular=True),
    Clip("mp4", "libx264", options=_B, matrix=1),
    Clip("mp4", "libx264", options=_B, matrix=1, full=True),
    Clip("mp4", "libx264", options=_B, matrix=9),
    Clip("mp4", "libx264", options=_B, matrix=7),
    Clip("mp4", "libx264", options=_B, matrix=6, full=True),
    Clip("mp4", "libx264", options=_B, container={"movflags": "frag_keyframe+empty_moov"}),
    Clip("mp4", "libx264", options=_B, container={"movflags": "faststart"}),
    Clip("mp4", "libx265", options={**_FAST, "x265-params": "log-level=none:bframes=2"}),
    Clip("mp4", "libx265", "yuv420p10le", {**_FAST, "x265-params": "log-level=none"}, matrix=9),
    Clip("mp4", "mpeg4", options={"bf": "2", "qscale": "2", "flags": "qscale"}),
    Clip("mp4", "libvpx-vp9", options={"speed": "8"}),
    Clip("mp4", "libsvtav1", options={"preset": "12"}),
    Clip("mov", "prores_ks", "yuv422p10le"),
    Clip("mov", "qtrle", "rgb24"),
    Clip("mov", "png", "rgb24"),
    Clip("mov", "mjpeg", "yuvj422p", {"qscale": "2", "flags": "qscale"}),
    Clip("mov", "dnxhd", "yuv422p", {"profile": "dnxhr_hq"}, size=(256, 128)),
    Clip("3gp", "h263"),
    Clip("mkv", "libx264", options=_B),
    Clip("mkv", "libx264", options=_B, irregular=True),
    Clip("mkv", "libx264", options=_B, matrix=1, full=True),
    Clip("mkv", "libx264rgb", "rgb24", _FAST),
    Clip("mkv", "ffv1"),
    Clip("mkv", "ffv1", "gray"),
    Clip("mkv", "ffv1", "bgr0"),
    Clip("mkv", "ffv1", "yuv444p16le"),
    Clip("avi", "huffyuv", "yuv422p"),
    Clip("mkv", "mpeg2video", options={"bf": "2", "qscale": "2", "flags": "qscale"}),
    Clip("mkv", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "b": "1M"}),
    Clip("webm", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "b": "1M"}),
    Clip("webm", "libvpx-vp9", options={"speed": "8", "b": "1M"}),
    Clip("webm", "libvpx-vp9", "yuv444p", {"speed": "8", "b": "1M"}),
    Clip("webm", "libvpx", options={"b": "1M"}, irregular=True),
    Clip("flv", "libx264", options=_B, irregular=True),
    Clip("ts", "libx264", options=_B, irregular=True),
    Clip("mov", "mjpeg", "yuvj420p", {"qscale": "2", "flags": "qscale"}, irregular=True),
    Clip("webm", "libsvtav1", options={"preset": "12"}),
    Clip("avi", "mpeg4", options={"qscale": "2", "flags": "qscale"}),
    Clip("avi", "mpeg4", options={"bf": "2", "g": "8", "qscale": "2", "flags": "qscale"}),
    Clip("avi", "libx264", options=_B),
    Clip("avi", "mjpeg", "yuvj420p", {"qscale": "2", "flags": "qscale"}),
    Clip("avi", "msmpeg4", options={"qscale": "2", "flags": "qscale"}),
    Clip("avi", "rawvideo", "bgr24"),
    Clip("ts", "libx264", options=_B),
    Clip("ts", "libx265", options={**_FAST, "x265-params": "log-level=none"}),
    Clip("ts", "mpeg2video", options={"bf": "2", "qscale": "2", "flags": "qscale"}),
    Clip("m2ts", "libx264", options=_B, container={"mpegts_m2ts_mode": "1"}),
    Clip("mpg", "mpeg2video", options={"bf": "2", "qscale": "2", "flags": "qscale"}),
    Clip("vob", "mpeg2video", options={"qscale": "2", "flags": "qscale"}),
    Clip("flv", "flv", options={"qscale": "2", "flags": "qscale"}),
    Clip("flv", "libx264", options=_B),
    Clip("wmv", "wmv2", options={"qscale": "2", "flags": "qscale"}),
    Clip("asf", "msmpeg4", options={"qscale": "2", "flags": "qscale"}),
    Clip("ogg", "libvpx", options={"b": "1M"}),
    Clip("gif", "gif", "rgb8"),
)
