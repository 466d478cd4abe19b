"""Media as lmms-eval's built-in Qwen2.5-VL chat class encodes them, with qwen-vl-utils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sf.data.control_tokens import check_turns

if TYPE_CHECKING:
    from transformers import BatchFeature

    from sf.sections import Vision

__all__ = ["encode_as_lmms_eval"]


def encode_as_lmms_eval(
    processor: Any,
    conversations: Sequence[Sequence[dict[str, Any]]],
    vision: Vision,
    device: str = "cpu",
) -> BatchFeature:
    """Left-padded model inputs of a batch of conversations, made by qwen-vl-utils.

    As the built-in class (`lmms_eval/models/chat/qwen2_5_vl.py`) does without `fps`: an even
    number of frames, at most `video_max_frames`, spread from a video's first to its last frame; the
    pixel bounds are given with videos only, and the processor's own bounds hold for images. The
    built-in class takes the number from the batch's first video for all; here each video has its
    own.

    Args:
        processor: of Qwen2-VL or Qwen2.5-VL.
        conversations: as `sf.data.vision.encode` takes them.
        vision: `video_*` bounds are used, except `video_fps`.
        device: where the tensors go.
    """
    from qwen_vl_utils import process_vision_info

    check_turns(processor, conversations)
    talks = [
        [{**turn, "content": [_part(part, vision) for part in turn["content"]]} for turn in talk]
        for talk in conversations
    ]
    texts = processor.apply_chat_template(talks, tokenize=False, add_generation_prompt=True)
    images, videos, _ = process_vision_info(
        talks, return_video_kwargs=True, return_video_metadata=True
    )
    frames, metadata = zip(*videos, strict=True) if videos else (None, None)
    inputs = processor(
        text=texts,
        images=images,
        videos=list(frames) if frames else None,
        video_metadata=list(metadata) if metadata else None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return inputs.to(device)


def _part(part: dict[str, Any], vision: Vision) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image", "image": part.get("image", part.get("path"))}
    if part["type"] == "video":
        return {
            "type": "video",
            "video": part["path"],
            "min_pixels": vision.video_min_pixels,
            "max_pixels": vision.video_max_pixels,
            "nframes": _frames(part["path"], vision.video_max_frames),
        }
    return part


def _frames(path: str, most: int) -> int:
    """An even number of frames, at least 2, at most `most` and what the file holds."""
    import decord

    return max(2, min(most, len(decord.VideoReader(path))) // 2 * 2)
