"""The media pass's record of an image or a video."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sf.data.media import split_reference

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = ["FOUND", "MediaFacts", "media_key"]

FACTS = "upright, digest, times, gray"  # change it when the same file gives other facts
FOUND = ("width", "height", "num_frames", "fps", "duration_s", "codec")


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """The properties of a media file, or the reason why it is unusable.

    Attributes:
        media: reference below the data root.
        data_type: "image" or "video".
        key: size and modification time of the file, the frame rules and `FACTS`.
        width, height, num_frames, fps, duration_s, codec: see `sf.data.manifest.Row`.
        digest: of the file's bytes; equal for copies under other names. "" if unusable.
        error: "" or the reason.
    """

    media: str
    data_type: str
    key: str
    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: float = 0.0
    duration_s: float = 0.0
    codec: str = ""
    digest: str = ""
    error: str = ""


def media_key(root: Path, media: str, data_type: str, *visions: Vision) -> str:
    """A key that changes with the file or with the frame rules."""
    try:
        state = os.stat(split_reference(root / media)[0])
    except OSError:
        return ""  # opening it reports the fault
    rules = dict.fromkeys(f" {v.video_fps:g}/{v.video_max_frames}" for v in visions)
    rule = "".join(rules) if data_type == "video" else ""
    return f"{state.st_size} {state.st_mtime_ns}{rule} {FACTS}"
