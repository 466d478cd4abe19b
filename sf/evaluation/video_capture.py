"""Frame rate and number of frames from OpenCV, for task code that needs them.

VideoMME's task with subtitles opens each video with OpenCV for the prompt. Here that happens in a
worker process, since OpenCV's FFmpeg can crash or hang like any decoder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sf.data.check import time_limit_s
from sf.errors import DataError
from sf.isolation import Lost, run_isolated

__all__ = ["IsolatedCapture", "isolate_captures"]


class IsolatedCapture:
    """Replaces `cv2.VideoCapture`; any call other than `get` opens the file in this process.

    Args:
        path: of the video.
        *rest: of OpenCV's class.
    """

    def __init__(self, path: str, *rest: Any) -> None:
        self._given = path, *rest

    def get(self, field: int) -> float:
        """A property of the video; 0 if OpenCV does not provide it.

        Raises:
            DataError: opening the file crashes OpenCV or keeps it busy.
        """
        path = str(self._given[0])
        try:
            changed_ns = os.stat(path).st_mtime_ns
        except OSError:
            return 0.0  # as OpenCV does for a missing file
        properties = _properties(path, changed_ns)
        if isinstance(properties, Lost):
            rule = f"OpenCV cannot open it: {properties.reason}"
            raise DataError("video", path, rule, "fetch the file again or leave it out")
        return properties[field] if field in properties else self._here.get(field)

    @cached_property
    def _here(self) -> Any:
        from sf.evaluation.opencv_properties import VideoCapture

        return VideoCapture(*self._given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._here, name)


@lru_cache(maxsize=4096)
def _properties(path: str, changed_ns: int) -> Mapping[int, float] | Lost:
    from sf.evaluation import opencv_properties

    call, limit = (path,), time_limit_s(Path(path))
    ((_, answer),) = run_isolated(opencv_properties.properties, [call], [limit], workers=1)
    assert isinstance(answer, dict | Lost)
    return answer


def isolate_captures(functions: Mapping[str, Any]) -> None:
    """Make the functions of a task's configuration open videos in worker processes.

    Their modules were executed only for this task (lmms-eval's `!function`).
    """
    for function in functions.values():
        names: dict[str, Any] = getattr(function, "__globals__", {})
        if "cv2" in names:
            names["cv2"] = SimpleNamespace(**vars(names["cv2"]) | {"VideoCapture": IsolatedCapture})
