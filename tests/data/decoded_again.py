"""Loads files as the project does, in a module that a worker process can import."""

from __future__ import annotations

from itertools import pairwise

from sf.data.images import load_image
from sf.data.video import _decode, _own_size
from sf.errors import DataError
from sf.sections import Vision

VISION = Vision(
    image_min_pixels=784,
    image_max_pixels=12544,
    video_min_pixels=784,
    video_max_pixels=12544,
    video_max_frames=4,
    video_fps=2.0,
)


def decoded(path: str, data_type: str) -> tuple[int, int] | str:
    """Width and height of a file as the loaders decode it, or the fault."""
    try:
        if data_type == "image":
            return load_image(path).size
        facts, indices, frames = _decode(path, lambda facts: facts.sampled(VISION), _own_size)
    except DataError as error:
        return str(error)
    if any(facts.seconds(a) > facts.seconds(b) for a, b in pairwise(indices)):
        return "its times do not rise"
    return frames.shape[2], frames.shape[1]
