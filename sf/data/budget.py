"""The cost of an image or a video: resized size, sampled frames, visual tokens. Without torch.

The size rule is transformers' `smart_resize` (Qwen2-VL). The frame rule is that of its
`Qwen2VLVideoProcessor.sample_frames`: evenly spaced from the first frame, `video_fps` per second,
an even number, at least 4 if the video has them, at most `video_max_frames`. Videos of variable
rate are sampled at evenly spaced times. In both cases the processor's `second_per_grid_ts` (twice
the interval between sampled frames) is exact. qwen-vl-utils instead spreads the same number of
frames from the first to the very last frame, which makes its time stamps slightly wrong.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sf.errors import DataError

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = [
    "FACTOR",
    "MAX_ASPECT",
    "MIN_FRAMES",
    "SHORT_QUESTION",
    "TEMPORAL_PATCH",
    "frame_indices",
    "frames_at",
    "longest_prompt",
    "pixel_bounds",
    "resized_size",
    "visual_tokens",
]

FACTOR = 28  # patch 14 x merge 2: side of a visual token in pixels, Qwen2-VL and Qwen2.5-VL
TEMPORAL_PATCH = 2  # frames in one visual token
MIN_FRAMES = 4
MAX_ASPECT = 200
SHORT_QUESTION = 64  # text tokens of a prompt


def pixel_bounds(data_type: str, vision: Vision) -> tuple[int, int]:
    """Smallest and largest number of pixels of an image or of one frame."""
    if data_type == "image":
        return vision.image_min_pixels, vision.image_max_pixels
    return vision.video_min_pixels, vision.video_max_pixels


def resized_size(
    width: int, height: int, bounds: tuple[int, int], factor: int = FACTOR
) -> tuple[int, int]:
    """Width and height after resizing: multiples of `factor`, within the bounds where possible.

    Args:
        width, height: of the source, in pixels.
        bounds: smallest and largest number of pixels. A side never falls below `factor`, so very
            flat media can exceed the upper bound.
        factor: side of a visual token.

    Raises:
        DataError: a side is 0, or one is more than 200 times the other.
    """
    if min(width, height) < 1:
        raise DataError("size", f"{width}x{height}", "both sides must be positive", "drop the row")
    if max(width, height) > MAX_ASPECT * min(width, height):
        rule = f"no side may be more than {MAX_ASPECT} times the other"
        raise DataError("size", f"{width}x{height}", rule, "drop the row or crop the media")
    low, high = bounds
    new_width, new_height = (round(side / factor) * factor for side in (width, height))
    if new_width * new_height > high:
        shrink = math.sqrt(width * height / high)
        new_width, new_height = (
            max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)
        )
    elif new_width * new_height < low:
        grow = math.sqrt(low / (width * height))
        new_width, new_height = (
            math.ceil(side * grow / factor) * factor for side in (width, height)
        )
    return new_width, new_height


def _num_sampled(num_frames: int, fps: float, vision: Vision) -> int:
    """Number of sampled frames of a video."""
    if num_frames < 1:
        raise DataError("num_frames", num_frames, "a video needs a frame", "drop the row")
    if not (math.isfinite(fps) and fps > 0):
        raise DataError("fps", fps, "the frame rate must be positive", "drop the row")
    most = min(vision.video_max_frames, num_frames)
    wanted = min(max(num_frames / fps * vision.video_fps, MIN_FRAMES), most)
    return max(1, math.floor(wanted / TEMPORAL_PATCH) * TEMPORAL_PATCH)


def frame_indices(num_frames: int, fps: float, vision: Vision) -> list[int]:
    """The sampled frames of a video of constant rate.

    Args:
        num_frames: frames in the video.
        fps: its frames per second.
        vision: `video_fps` and `video_max_frames`.

    Returns:
        Increasing indices; an even number of them, or one for a video of one frame.

    Raises:
        DataError: no frames, or no positive frame rate.
    """
    count = _num_sampled(num_frames, fps, vision)
    return [math.floor(index * num_frames / count) for index in range(count)]


def frames_at(seconds: Sequence[float], duration_s: float, vision: Vision) -> list[int]:
    """The sampled frames of a video of variable rate: those shown at evenly spaced times.

    Args:
        seconds: the time of each frame, increasing from 0.
        duration_s: the end of the last frame.
        vision: `video_fps` and `video_max_frames`.

    Returns:
        Indices in order, as many as `frame_indices` gives for the mean rate; a frame with a long
        display time is repeated.

    Raises:
        DataError: see `frame_indices`.
    """
    count = _num_sampled(len(seconds), len(seconds) / duration_s, vision)
    times = (index * duration_s / count for index in range(count))
    return [bisect.bisect_right(seconds, time + 1e-6) - 1 for time in times]


def longest_prompt(vision: Vision) -> int:
    """Tokens of the longest prompt under the given bounds, with a short question."""
    frames = math.ceil(vision.video_max_frames / TEMPORAL_PATCH)
    cell = FACTOR * FACTOR
    visual = max(vision.image_max_pixels // cell, frames * (vision.video_max_pixels // cell))
    return visual + SHORT_QUESTION


def visual_tokens(
    data_type: str, width: int, height: int, num_frames: int, fps: float, vision: Vision
) -> int:
    """Number of placeholder tokens of an image or a video in a prompt.

    Raises:
        DataError: a size, frame count or frame rate that no processor accepts.
    """
    new_width, new_height = resized_size(width, height, pixel_bounds(data_type, vision))
    tokens = (new_width // FACTOR) * (new_height // FACTOR)
    if data_type == "image":
        return tokens
    frames = _num_sampled(num_frames, fps, vision)
    return tokens * math.ceil(frames / TEMPORAL_PATCH)
