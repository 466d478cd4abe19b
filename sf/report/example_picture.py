"""The picture of one example: a question's media, and the cells kept by each third of the layers.

Shape suffixes: G groups of layers; T time steps, H rows and W columns of cells.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageColor
import PIL.ImageFilter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sf.evaluation.layer_groups import group_names, layer_groups
from sf.evaluation.packed_cells import unpacked
from sf.plotting import SETTINGS, in_style
from sf.report.overlay import LINE as YELLOW
from sf.report.overlay import cell_pixels, veiled

__all__ = ["Kept", "Shown", "example_picture", "kept_of", "shown_of", "time_step"]

PANEL, TALLEST = 320, 480  # largest width and height of a panel in pixels
GAP, TITLE, LINE = 12, 34, 27  # pixels between panels, above them, and per line of text
LEAST = 900  # smallest width in pixels, for the text below a single panel
DPI = int(SETTINGS["savefig.dpi"])
EDGE = 3
KEY = "Grey: dropped by more than half of the group's layers. The line surrounds the kept cells."
NO_RECORD = "This row has no record of kept tokens."
OLDER = "Evaluate this row again: it predates the record of kept tokens."
ALL_KEPT = "Every token was kept."
OTHER_FRAMES = "The picture does not show the frames that this row was given."


@dataclass(frozen=True)
class Shown:
    """One image, or one frame of a video, of a question's preview.

    Attributes:
        pixels: uint8 (height, width, 3).
        medium: index of the image or video in the question.
        frame: index of the frame among those that the model was given.
        frames: number of frames that the model was given.
    """

    pixels: NDArray[np.uint8]
    medium: int
    frame: int
    frames: int


@dataclass(frozen=True)
class Kept:
    """The cells that a row kept of a question's media.

    Attributes:
        groups: name of each group of layers, with the share of all cells that it kept.
        cells: by displayed image, bool (G, H, W).
        text: the reason if there are no cells, else empty.
    """

    groups: Sequence[str] = ()
    cells: Sequence[NDArray[np.bool_]] = ()
    text: str = ""


def shown_of(preview: Mapping[str, Any]) -> list[Shown]:
    """The images of a line of `sf.evaluation.previews.preview_table`; [] without media."""
    if not preview["picture"]:
        return []
    with PIL.Image.open(io.BytesIO(preview["picture"])) as strip:
        whole = strip.convert("RGB")
    return [
        Shown(_enlarged(whole.crop((left, 0, left + width, height))), *place)
        for *place, left, width, height in json.loads(preview.get("places", "[]"))
    ]


def _enlarged(image: PIL.Image.Image) -> NDArray[np.uint8]:
    """Enlarge a small preview to a panel's size, so that its cells have sharp edges."""
    factor = min(PANEL / image.width, TALLEST / image.height)
    size = (max(1, round(factor * image.width)), max(1, round(factor * image.height)))
    return np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC))


def time_step(frame: int, frames: int, steps: int) -> int | None:
    """The time step of a frame, with one step per frame or per two frames; None for neither."""
    if steps == frames:
        return frame
    return frame // 2 if steps == -(-frames // 2) else None


def kept_of(sample: Mapping[str, Any], shown: Sequence[Shown]) -> Kept:
    """The kept cells of the displayed images, from a sample's record.

    Args:
        sample: from `sf.report.examples.Pair`.
        shown: images of its question.

    Raises:
        DataError: a damaged record.
    """
    texts = sample["kept_cells"]
    if not texts:
        if sample["token_ratio"] == 1:
            return Kept(text=ALL_KEPT)
        return Kept(text=OLDER if texts is None else NO_RECORD)
    groups = layer_groups(len(sample["layer_ratios"]))
    media = [unpacked(text, len(groups)) for text in texts]
    cells = []
    for one in shown:
        steps = media[one.medium].shape[1] if one.medium < len(media) else 0
        step = time_step(one.frame, one.frames, steps)
        if step is None:
            return Kept(text=OTHER_FRAMES)
        cells.append(media[one.medium][:, step])
    counts = sum(medium.reshape(len(groups), -1).sum(1) for medium in media)
    total = sum(medium[0].size for medium in media)
    shares = [f"{100 * float(count) / total:.0f} %" for count in counts]
    names = [f"{n}: {s} kept" for n, s in zip(group_names(groups), shares, strict=True)]
    return Kept(names, cells)


@in_style
def example_picture(shown: Sequence[Shown], kept: Kept, lines: Sequence[str]) -> Figure:
    """A row for each image or frame: the original, then one panel per group of layers.

    All panels form one image, which matplotlib draws many times faster than separate panels.

    Args:
        shown: at least one.
        kept: `kept_of` these images.
        lines: text below the panels.

    Returns:
        A figure for `sf.plotting.save`.
    """
    rows = [[one.pixels] for one in shown]
    for at, cells in enumerate(kept.cells):
        rows[at] += [_marked(shown[at].pixels, group) for group in cells]
    width = len(rows[0]) * (PANEL + GAP)
    height = TITLE + sum(row[0].shape[0] + TITLE for row in rows)
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    whole = max(width, LEAST)
    text = [part for line in [*lines, KEY if kept.groups else kept.text]
            for part in wrap(line, whole // 11)]  # fmt: skip
    below = LINE * (len(text) + 1)
    fig = Figure(figsize=(whole / DPI, (height + below) / DPI))
    panel = fig.add_axes((0, below / (height + below), width / whole, height / (height + below)))
    top = TITLE  # the first titles take two lines
    for at, (row, one) in enumerate(zip(rows, shown, strict=True)):
        top += TITLE
        first = f"frame {one.frame + 1} of {one.frames}" if one.frames > 1 else "image"
        titles = [first, *(kept.groups if at == 0 else ())]
        for column, title in enumerate(titles):
            panel.text(column * (PANEL + GAP), top - 8, title.replace(" (", "\n("), fontsize=9)
        for column, pixels in enumerate(row):
            left = column * (PANEL + GAP)
            canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        top += row[0].shape[0]
    panel.imshow(canvas, interpolation="nearest", aspect="auto")
    panel.set_axis_off()
    place = (below - LINE / 2) / (height + below)
    fig.text(0.004, place, "\n".join(text), fontsize=9, va="top", color="#333333")
    return fig


def _marked(frame: NDArray[np.uint8], kept_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The frame with dropped cells in grey and a line around the kept ones."""
    marked = veiled(frame, kept_HW.astype(float))
    inside = np.pad(cell_pixels(kept_HW, *frame.shape[:2]), EDGE)
    edge = np.asarray(PIL.Image.fromarray(inside).convert("L"))
    for width, colour in ((EDGE, "black"), (EDGE - 1, YELLOW)):
        narrowed = PIL.Image.fromarray(edge).filter(PIL.ImageFilter.MinFilter(2 * width + 1))
        line = (inside & (np.asarray(narrowed) == 0))[EDGE:-EDGE, EDGE:-EDGE]
        marked[line] = PIL.ImageColor.getrgb(colour)
    return marked
