"""OpenCV's properties of a video, read in a worker process of `sf.isolation`."""

from __future__ import annotations

from sf.extras import extra

with extra("eval"):
    import cv2
    from cv2 import VideoCapture

__all__ = ["VideoCapture", "properties"]


def properties(path: str) -> dict[int, float]:
    """Rate, number of frames, width and height by OpenCV's numbers of them; 0 for unknown ones."""
    capture = VideoCapture(path)
    fields = (
        *(cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT),
        *(cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT),
    )
    return {field: float(capture.get(field)) for field in fields}
