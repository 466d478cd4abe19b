"""A disk cache of decoded frames, for media that are read repeatedly.

Off by default. `SF_FRAME_CACHE=FOLDER` enables it for every stage, `SF_FRAME_CACHE_GIB` limits its
size (default 100). These are not study parameters: results are the same with and without.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.atomic_files import replacing
from sf.data.media import split_reference
from sf.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from sf.sections import Vision

__all__ = ["FrameCache"]

DEFAULT_GIB = 100.0
DECODING = "times, matrix and range"  # change it when the same file decodes to other frames


@dataclass(slots=True)
class FrameCache:
    """Frames by file, frame rule and pixel bounds.

    A full cache evicts nothing: training reads every clip once per epoch, so the least recently
    read clip is the next one to be read.

    Attributes:
        folder: created if missing; several processes may share it.
        max_bytes: size limit; each process counts the files that it has seen.
    """

    folder: Path
    max_bytes: float
    _used: int = field(default=-1, repr=False)

    @staticmethod
    def from_environment() -> FrameCache | None:
        """The cache configured by the environment, if any.

        Raises:
            ConfigError: `SF_FRAME_CACHE_GIB` is not a positive number.
        """
        folder = os.environ.get("SF_FRAME_CACHE", "")
        limit = os.environ.get("SF_FRAME_CACHE_GIB", str(DEFAULT_GIB))
        return _opened(folder, limit) if folder else None

    def _place(self, path: Path | str, vision: Vision) -> Path | None:
        try:
            state = os.stat(split_reference(path)[0])
        except OSError:
            return None  # decoding reports the fault
        parts = (
            DECODING,
            os.path.abspath(path),
            state.st_size,
            state.st_mtime_ns,
            vision.video_fps,
            vision.video_max_frames,
            vision.video_min_pixels,
            vision.video_max_pixels,
        )
        name = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.npz"

    def get(self, path: Path | str, vision: Vision) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Frames uint8 [T, H, W, C] and metadata fields, or None."""
        import numpy as np

        place = self._place(path, vision)
        if place is None or not place.is_file():
            return None
        try:
            with np.load(place) as stored:
                return stored["frames"], json.loads(str(stored["details"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # damaged: decode and write it again

    def put(
        self, path: Path | str, vision: Vision, frames: np.ndarray, details: dict[str, Any]
    ) -> None:
        """Store frames atomically if they fit in the limit."""
        import numpy as np

        if self._used < 0:
            self._used = sum(entry.stat().st_size for entry in self.folder.glob("*/*.npz"))
        place = self._place(path, vision)
        if place is None or self._used + frames.nbytes > self.max_bytes:
            return
        with replacing(place, shared=True) as part, part.open("wb") as file:
            np.savez(file, frames=frames, details=np.array(json.dumps(details)))
        self._used += frames.nbytes


@cache
def _opened(folder: str, limit: str) -> FrameCache:
    try:
        gib = float(limit)
    except ValueError:
        gib = 0.0
    if not gib > 0:
        raise ConfigError(
            "SF_FRAME_CACHE_GIB", limit, "it must be a positive number", "unset it for 100"
        )
    return FrameCache(Path(folder), gib * 2**30)
