"""qwen-vl-utils and decord on one conversation, run in a worker process of `sf.isolation`.

Importing the module loads both, which a worker does once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sf.extras import extra

with extra("eval"):
    import decord
    from qwen_vl_utils import process_vision_info, vision_process

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = ["load"]


def load(talk: Sequence[dict[str, Any]], vision: Vision) -> tuple[Any, Any] | str:
    """The media of a conversation.

    Args:
        talk: turns, as in `sf.data.vision.encode`.
        vision: `video_*` bounds are used, except `video_fps`.

    Returns:
        Images, and videos with their metadata, as from `process_vision_info` (None if there are
        none); or the reason why they cannot be read.
    """
    turns = [
        {**turn, "content": [_part(part, vision) for part in turn["content"]]} for turn in talk
    ]
    try:
        for part in (part for turn in turns for part in turn["content"]):
            if part["type"] == "video":
                part["nframes"] = _frames(part["video"], vision.video_max_frames)
        with _decord_alone():
            images, videos, _ = process_vision_info(
                turns, return_video_kwargs=True, return_video_metadata=True
            )
    except Exception as error:  # noqa: BLE001 - damaged files raise errors of any class
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return images, videos


@contextmanager
def _decord_alone() -> Iterator[None]:
    """A context in which torchvision's reader, removed in 0.26, does not hide decord's error."""
    readers = vision_process.VIDEO_READER_BACKENDS
    other = readers["torchvision"]
    readers["torchvision"] = readers["decord"]
    try:
        yield
    finally:
        readers["torchvision"] = other


def _part(part: dict[str, Any], vision: Vision) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image", "image": part.get("image", part.get("path"))}
    if part["type"] == "video":
        return {
            "type": "video",
            "video": part["path"],
            "min_pixels": vision.video_min_pixels,
            "max_pixels": vision.video_max_pixels,
        }
    return part


def _frames(path: str, most: int) -> int:
    """An even number of frames, at least 2, limited by `most` and the file's frames."""
    return max(2, min(most, len(decord.VideoReader(path))) // 2 * 2)
