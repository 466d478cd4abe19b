"""Media as lmms-eval's built-in Qwen2.5-VL chat class encodes them, with qwen-vl-utils."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.data.check import TIME_LIMIT_S, time_limit_s
from sf.data.control_tokens import check_turns
from sf.data.media import num_decoders
from sf.errors import DataError
from sf.isolation import Lost, run_isolated

if TYPE_CHECKING:
    from transformers import BatchFeature

    from sf.sections import Vision

__all__ = ["decord_faults", "encode_as_lmms_eval"]

Conversation = Sequence[dict[str, Any]]


def encode_as_lmms_eval(
    processor: Any,
    conversations: Sequence[Conversation],
    vision: Vision,
    device: str = "cpu",
) -> BatchFeature:
    """Left-padded model inputs of a batch of conversations, from qwen-vl-utils.

    As in the built-in class (`lmms_eval/models/chat/qwen2_5_vl.py`) without `fps`: an even number
    of frames, at most `video_max_frames`, spread from a video's first to its last frame; the pixel
    bounds apply only to videos, and the processor's bounds to images. The built-in class uses the
    frame number of the batch's first video for all; here each video has its own.

    Args:
        processor: of Qwen2-VL or Qwen2.5-VL.
        conversations: as in `sf.data.vision.encode`.
        vision: `video_*` bounds are used, except `video_fps`.
        device: of the tensors.

    Raises:
        DataError: media that decord or Pillow cannot read in time, or text with a control token.
    """
    check_turns(processor, conversations)
    loaded = _loaded(conversations, vision)
    images = [image for some, _ in loaded for image in some or ()]
    videos = [video for _, some in loaded for video in some or ()]
    frames, metadata = zip(*videos, strict=True) if videos else (None, None)
    texts = processor.apply_chat_template(
        [list(talk) for talk in conversations], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(
        text=texts,
        images=images or None,
        videos=list(frames) if frames else None,
        video_metadata=list(metadata) if metadata else None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return inputs.to(device)


def _loaded(conversations: Sequence[Conversation], vision: Vision) -> list[tuple[Any, Any]]:
    """Images and videos of each conversation."""
    loaded: dict[int, tuple[Any, Any]] = {}
    for index, media in _load_isolated(conversations, vision):
        if isinstance(media, str):
            name = ", ".join(_paths(conversations[index])) or "an image in memory"
            remedy = "leave the row out, or use media=training"
            raise DataError("media", name, f"decord cannot read it: {media}", remedy)
        loaded[index] = media
    return [loaded[index] for index in range(len(conversations))]


def decord_faults(conversations: Sequence[Conversation], vision: Vision) -> list[str]:
    """The reason why the media of each conversation cannot be read this way, or ""."""
    faults = [""] * len(conversations)
    for index, media in _load_isolated(conversations, vision):
        if isinstance(media, str):
            names = "".join(f"{path}: " for path in _paths(conversations[index]))
            faults[index] = f"{names}decord cannot read it: {media}"
    return faults


def _paths(conversation: Conversation) -> list[str]:
    return [part["path"] for turn in conversation for part in turn["content"] if "path" in part]


def _load_isolated(
    conversations: Sequence[Conversation], vision: Vision
) -> Iterator[tuple[int, tuple[Any, Any] | str]]:
    """Media by index, or the fault; decord may hang or crash on damaged files."""
    from sf.evaluation import qwen_vl_media

    seconds = [
        sum((time_limit_s(Path(path)) for path in _paths(talk)), TIME_LIMIT_S)
        for talk in conversations
    ]
    calls = [(talk, vision) for talk in conversations]
    for index, media in run_isolated(qwen_vl_media.load, calls, seconds, workers=num_decoders()):
        yield index, media.reason if isinstance(media, Lost) else media
