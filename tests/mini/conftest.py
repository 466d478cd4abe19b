from __future__ import annotations

import pytest

from sf.config import Vision


@pytest.fixture
def vision() -> Vision:
    return Vision(
        image_min_pixels=784,
        image_max_pixels=50176,
        video_min_pixels=784,
        video_max_pixels=50176,
        video_max_frames=4,
        video_fps=1.0,
    )
