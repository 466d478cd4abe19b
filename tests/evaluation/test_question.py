"""The digest that identifies a record: whatever changes a reply changes it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from sf.evaluation.question import Question, question_of

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
TEXT = {"type": "text", "text": "Which colour?"}


def image(pixels: np.ndarray) -> dict[str, Any]:
    return {"type": "image", "url": Image.fromarray(pixels)}


def ask(*content: dict[str, Any], limit: int = 16) -> Question:
    """One user turn, as lmms-eval's request of row 3 of task `t`."""
    turns = [{"role": "user", "content": list(content)}]
    request: Any = SimpleNamespace(
        args=("", lambda row: turns, {"max_new_tokens": limit}, 3, "t", "test")
    )
    return question_of(request, {"t": {"test": [None] * 4}})


def test_the_same_question_has_one_digest() -> None:
    first, second = ask(image(PIXELS), TEXT), ask(image(PIXELS.copy()), {**TEXT})
    assert first.source == second.source
    assert (first.task, first.doc_id, first.max_new_tokens) == ("t", 3, 16)


def test_prompt_pixels_shape_order_and_limit_count() -> None:
    other = PIXELS.copy()
    other[1, 2, 0] ^= 1
    questions = [
        ask(image(PIXELS), TEXT),
        ask(image(PIXELS), {**TEXT, "text": "Which colour"}),
        ask(image(other), TEXT),
        ask(image(PIXELS.reshape(4, 2, 3)), TEXT),
        ask(TEXT, image(PIXELS)),
        ask(image(PIXELS), image(PIXELS), TEXT),
        ask(image(PIXELS), TEXT, limit=8),
        ask(TEXT),
    ]
    assert len({question.source for question in questions}) == len(questions)


def test_a_video_counts_by_name_size_and_time_of_change(tmp_path: Path) -> None:
    def digest(name: str, content: bytes, changed: int) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        os.utime(path, ns=(changed, changed))
        return ask({"type": "video", "url": str(path)}, TEXT).source

    first = digest("a.mp4", b"1234", 10**9)
    assert digest("a.mp4", b"5678", 10**9) == first
    others = [
        digest("b.mp4", b"1234", 10**9),
        digest("a.mp4", b"12345", 10**9),
        digest("a.mp4", b"1234", 10**9 + 1),
    ]
    assert len({first, *others}) == 4


def test_the_colours_of_a_palette_count() -> None:
    """Two images with equal indices but different palettes; equal bytes of different meaning."""
    first, second = (Image.new("P", (4, 2), 1) for _ in range(2))
    first.putpalette([0, 0, 0, 255, 0, 0])
    second.putpalette([0, 0, 0, 0, 0, 255])
    grey = Image.frombytes("L", (4, 2), first.tobytes())
    clear = first.copy()
    clear.info["transparency"] = 1
    urls = (first, second, grey, clear)
    assert len({ask({"type": "image", "url": url}).source for url in urls}) == 4
