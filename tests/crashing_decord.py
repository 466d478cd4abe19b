"""`sf.evaluation.qwen_vl_media.load` that crashes or hangs on files of certain names."""

from __future__ import annotations

import os
import time
from typing import Any

from sf.evaluation import qwen_vl_media

_load = qwen_vl_media.load


def load(talk: Any, vision: Any) -> Any:
    """As the real one, but for videos called "abort" and "hang"."""
    if "abort.mp4" in str(talk):
        os.abort()
    if "hang.mp4" in str(talk):
        time.sleep(1000)
    return _load(talk, vision)
