"""The image or video of a question, loaded once for the model and the drawing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sf.data.budget import TEMPORAL_PATCH
from sf.data.images import load_image
from sf.data.media import split_reference
from sf.data.video import load_own_size, load_video
from sf.errors import ConfigError, DataError
from sf.sections import Vision
from sf.validation import validated

__all__ = [
    "FPS",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "Media",
    "bounds",
    "check_decodable",
    "chosen",
    "load_media",
]

MIN_PIXELS = 4 * 28 * 28
MAX_PIXELS = {"image": 512 * 28 * 28, "video": 256 * 28 * 28}  # Video-R1's; a video's per frame
MAX_FRAMES = 32
FPS = 2.0

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class Media:
    """A loaded image or video.

    Attributes:
        kind: "image" or "video".
        part: the media part of a user turn, for `sf.data.vision.encode`.
        frames: uint8 [height, width, 3], one per time step of the model's grid.
        seconds: start of each time step; None for an image.
        vision: the bounds for loading and encoding.
    """

    kind: Kind
    part: dict[str, Any]
    frames: tuple[NDArray[np.uint8], ...]
    seconds: tuple[float, ...] | None
    vision: Vision


def chosen(image: str | Path | None, video: str | Path | None) -> tuple[Kind, str | Path]:
    """The kind and path of the given media.

    Raises:
        ConfigError: neither, or both.
        DataError: the file does not exist.
    """
    path = image if video is None else video
    if path is None or (image is not None and video is not None):
        both = None if path is None else f"{image}, {video}"
        raise ConfigError("image or video", both, "exactly one is needed", "give one of them")
    kind: Kind = "image" if video is None else "video"
    if not Path(split_reference(path)[0]).is_file():
        raise DataError(kind, str(path), "there is no such file", f"give the path of a {kind} file")
    return kind, path


def bounds(
    kind: Kind, max_pixels: int | None = None, max_frames: int = MAX_FRAMES, fps: float = FPS
) -> Vision:
    """The bounds on pixels and frames.

    Args:
        kind: images and videos have different defaults.
        max_pixels: of an image, or of each frame.
        max_frames, fps: of a video.

    Raises:
        ConfigError: a value is out of range.
    """
    most = MAX_PIXELS[kind] if max_pixels is None else max_pixels
    if most < 1:
        raise ConfigError("max_pixels", most, "must be at least 1", "omit it, or raise it")
    pixels = {
        f"{name}_{end}_pixels": min(MIN_PIXELS, most) if end == "min" else most
        for name in MAX_PIXELS
        for end in ("min", "max")
    }
    return validated(Vision, {**pixels, "video_max_frames": max_frames, "video_fps": fps})


def check_decodable(kind: Kind, path: str | Path, vision: Vision) -> None:
    """Decode the media once in a separate process, which a decoder may crash.

    Raises:
        DataError: it cannot be decoded.
    """
    from sf.data.check import media_faults

    (error,) = media_faults([(path, kind)], vision)
    if error:
        raise DataError(kind, str(path), error, "fetch the file again or leave it out")


def load_media(kind: Kind, path: str | Path, vision: Vision, *, llava: bool = False) -> Media:
    """Load an image or a video within bounds, for example those of a study's parameters.

    Args:
        kind, path: the media.
        vision: pixel and frame bounds.
        llava: for a LLaVA model, which resizes frames itself and has one time step per frame.

    Raises:
        DataError: missing or unreadable media.
    """
    if kind == "image":
        loaded = load_image(path)
        return Media(kind, {"type": kind, "image": loaded}, (np.asarray(loaded),), None, vision)
    frames, facts = (load_own_size if llava else load_video)(path, vision)
    part = {"type": kind, "video": (frames, facts)}
    begins = facts.timestamps
    if not llava:
        frames, begins = frames[::TEMPORAL_PATCH], begins[::TEMPORAL_PATCH]
    return Media(kind, part, tuple(frames), tuple(begins), vision)
