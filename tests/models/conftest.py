from __future__ import annotations

from typing import Any

import pytest

from sf.config import Vision
from sf.models import build_tiny


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


WORDS = "circle cross square triangle blue green red yellow white yes no A B C D"


@pytest.fixture(scope="session", params=["qwen2_vl", "qwen2_5_vl"])
def tiny(request) -> tuple[Any, Any]:
    """(model, processor) of each family; tests must not train it."""
    model, processor = build_tiny(request.param, [WORDS] * 3, seed=0)
    return model.eval(), processor
