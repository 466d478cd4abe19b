"""From scenes to pixels: PNG images and MP4 clips."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sf.mini.world import CELL, Clip, Item, Scene

__all__ = ["pixels", "render", "write_video"]

_RGB = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 245),
    "yellow": (240, 220, 40),
    "purple": (170, 50, 210),
    "cyan": (60, 220, 225),
    "white": (245, 245, 245),
}
_DARK, _SPAN = 36, 48  # background level at the top left, and its increase to the far edge
_CLUTTER_SHARE = 0.4
_CLUTTER_PATTERNS = 8


@lru_cache(maxsize=512)
def _stamp(shape: str, colour: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An item's pixels [28, 28, 3] and its mask over the background [28, 28]."""
    mask = Image.new("1", (CELL, CELL))
    draw = ImageDraw.Draw(mask)
    low, high, mid = 4, CELL - 5, CELL / 2
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=1)
    elif shape == "ring":
        draw.ellipse((low, low, high, high), fill=1)
        draw.ellipse((low + 6, low + 6, high - 6, high - 6), fill=0)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=1)
    elif shape == "triangle":
        draw.polygon([(mid, low), (low, high), (high, high)], fill=1)
    elif shape == "cross":
        draw.rectangle((mid - 4, low, mid + 3, high), fill=1)
        draw.rectangle((low, mid - 4, high, mid + 3), fill=1)
    else:
        font = ImageFont.load_default_imagefont()
        small = Image.new("L", (6, 11))
        ImageDraw.Draw(small).text((0, 0), shape, fill=255, font=font)
        large = small.resize((12, 22), Image.Resampling.NEAREST).point(lambda v: 255 * (v > 127))
        mask.paste(large.convert("1"), (8, 3))
    covered = np.array(mask, dtype=bool)
    paint = np.zeros((CELL, CELL, 3), np.uint8)
    paint[covered] = _RGB[colour]
    return paint, covered


@lru_cache(maxsize=_CLUTTER_PATTERNS)
def _pattern(index: int) -> NDArray[np.int16]:
    """A low-contrast texture [28, 28, 1] in grey levels, added to the background."""
    rng = np.random.default_rng(index)
    if index % 2:
        coarse = rng.integers(-10, 11, (7, 7, 1))
        return coarse.repeat(4, 0).repeat(4, 1).astype(np.int16)
    waves = np.sin(np.arange(CELL) * rng.uniform(0.4, 1.2) + rng.uniform(0, 6))
    flat = np.round(waves[:, None, None] * 9) * np.ones((1, CELL, 1))
    return (flat if index % 4 else flat.transpose(1, 0, 2)).astype(np.int16)


def _background(scene: Scene) -> NDArray[np.uint8]:
    """Tinted cells, some with clutter: [rows * 28, cols * 28, 3]."""
    rng = np.random.default_rng(scene.clutter)
    level = np.full((scene.rows, scene.cols, 3), _DARK, np.int16)
    level[..., 1] += (_SPAN * np.arange(scene.cols) // max(1, scene.cols - 1)).astype(np.int16)
    level[..., 2] += (_SPAN * np.arange(scene.rows) // max(1, scene.rows - 1)).astype(np.int16)[
        :, None
    ]
    patterns = np.stack([_pattern(i) for i in range(_CLUTTER_PATTERNS)])
    which = rng.integers(0, _CLUTTER_PATTERNS, (scene.rows, scene.cols))
    shown = rng.random((scene.rows, scene.cols)) < _CLUTTER_SHARE
    texture = patterns[which] * shown[..., None, None, None]  # rows, cols, 28, 28, 1
    cells = np.clip(level[:, :, None, None, :] + texture, 0, 255).astype(np.uint8)
    return cells.transpose(0, 2, 1, 3, 4).reshape(scene.rows * CELL, scene.cols * CELL, 3)


def _place(canvas: NDArray[np.uint8], item: Item) -> None:
    paint, covered = _stamp(item.shape, item.colour)
    cell = canvas[item.row * CELL : (item.row + 1) * CELL, item.col * CELL : (item.col + 1) * CELL]
    cell[covered] = paint[covered]


def pixels(scene: Scene) -> NDArray[np.uint8]:
    """RGB pixels [rows * 28, cols * 28, 3] of a scene."""
    canvas = _background(scene)
    for item in scene.items:
        _place(canvas, item)
    return canvas


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of cols * 28 by rows * 28 pixels."""
    return Image.fromarray(pixels(scene), "RGB")


def write_video(clip: Clip, path: Path, fps: int = 1) -> None:
    """Write the clip as H.264 in MP4, one encoded frame per scene, each lasting 1/`fps` s."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height = clip.first.cols * CELL, clip.first.rows * CELL
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"crf": "10", "preset": "veryfast", "bf": "0"}
        for scene in clip.frames:
            frame = av.VideoFrame.from_ndarray(pixels(scene), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
