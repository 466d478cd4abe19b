"""An lmms-eval model that answers from a script, and pixel bounds for the synthetic benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from sf.evaluation.records import Record
from sf.sections import Vision

ANSWERING = {"prompt_template": "answer", "max_completion_tokens": 2, "correctness_cutoff": 0.99}
BOUNDS = {
    "image_min_pixels": 784,
    "image_max_pixels": 50176,
    "video_min_pixels": 784,
    "video_max_pixels": 50176,
    "video_max_frames": 4,
    "video_fps": 2.0,
}
"""Pixel and frame bounds under which no stand-in is resized or thinned."""
VISION = Vision(**BOUNDS)  # type: ignore[arg-type]


class Scripted(lmms):
    """Gives `replies[task][doc_id]`."""

    is_simple = False

    def __init__(self, replies: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.replies = replies
        self.asked: dict[str, list[int]] = {}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        for request in requests:
            self.asked.setdefault(request.args[4], []).append(request.args[3])
        return [self.replies[request.args[4]][request.args[3]] for request in requests]

    def answered(self, task: str) -> list[Record]:
        return [
            Record(task, doc, "", self.replies[task][doc], 1.0, (1.0, 1.0), 10, 1, 100, 0.1, 1)
            for doc in self.asked[task]
        ]

    def clean(self) -> None: ...

    def loglikelihood(self, requests: list[Instance]) -> Any:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Instance]) -> Any:
        raise NotImplementedError
