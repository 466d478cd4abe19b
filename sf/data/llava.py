"""From conversations to model inputs for LLaVA-OneVision and LLaVA-NeXT-Video.

Their processors cut an image into tiles of the vision tower's input size and resize every frame to
that size, so the pixel bounds of `Vision` do not apply; frames are sampled by the project's rule
(`sf.data.budget.frame_indices`). Frames are not resized before the processor, because resizing
twice would differ from the published preprocessing.

LLaVA-Video's prompts state the times of the frames (`sf.attention.video_form`).

For LLaVA-OneVision, each of several images in a prompt is a single tile, as in its training;
lmms-eval's `llava_hf` class cuts each of them into tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sf.data.control_tokens import check_turns
from sf.data.images import load_rgb
from sf.data.media import num_decoders
from sf.data.video import load_own_size
from sf.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from transformers import BatchFeature

    from sf.sections import Vision

__all__ = ["encode_llava", "encode_llava_parts", "is_llava", "load_own_size"]

Conversation = Sequence[dict[str, Any]]


def is_llava(processor: Any) -> bool:
    """Whether a processor belongs to LLaVA-OneVision's or LLaVA-NeXT-Video's architecture."""
    from transformers import LlavaNextVideoProcessor, LlavaOnevisionProcessor

    return isinstance(processor, LlavaOnevisionProcessor | LlavaNextVideoProcessor)


def _own_size(part: dict[str, Any], vision: Vision) -> tuple[np.ndarray, Any]:
    if "video" not in part:
        return load_own_size(part["path"], vision)
    frames, facts = part["video"]
    size = (facts.width, facts.height)
    if None not in size and (frames.shape[2], frames.shape[1]) != size:
        raise ConfigError(
            "video",
            f"{frames.shape[2]}x{frames.shape[1]}",
            f"was resized from {size[0]}x{size[1]}, and LLaVA's processor resizes by itself",
            "load it with sf.data.llava.load_own_size",
        )
    return frames, facts


def _loaded(conversations: Sequence[Conversation], vision: Vision) -> list[list[dict[str, Any]]]:
    """The conversations with every media part decoded."""

    def load(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "image":
            return {"type": "image", "image": load_rgb(part)}
        if part["type"] == "video":
            return {"type": "video", "video": _own_size(part, vision)}
        return part

    with ThreadPoolExecutor(num_decoders()) as pool:
        return [
            [
                turn
                if isinstance(turn["content"], str)
                else {**turn, "content": list(pool.map(load, turn["content"]))}
                for turn in conversation
            ]
            for conversation in conversations
        ]


def _parts(conversation: Conversation, kind: str) -> list[dict[str, Any]]:
    return [
        part
        for turn in conversation
        if not isinstance(turn["content"], str)
        for part in turn["content"]
        if part["type"] == kind
    ]


def _frames(conversation: Conversation) -> set[int]:
    """The frame counts of the conversation's videos."""
    return {len(part["video"][0]) for part in _parts(conversation, "video")}


def encode_llava(
    processor: Any, conversations: Sequence[Conversation], vision: Vision, device: str = "cpu"
) -> BatchFeature:
    """Left-padded model inputs of a batch of conversations.

    Args:
        processor: `is_llava`.
        conversations: as in `sf.data.vision.encode`; a loaded "video" must have its original
            size (`load_own_size`).
        vision: frame rule.
        device: of the tensors.

    Returns:
        `input_ids`, `attention_mask` [B, L]; for images `pixel_values` [M, tiles, 3, S, S] and
        `image_sizes` [M, 2]; for videos `pixel_values_videos` [M, T, 3, S, S].

    Raises:
        DataError: unreadable media, text with a control token, or videos with different frame
            counts: transformers' classes need one count per forward pass. `encode_llava_parts`
            splits a batch accordingly.
        ConfigError: a loaded video that was resized.
    """
    return _encode(processor, _loaded(conversations, vision), device)


def encode_llava_parts(
    processor: Any, conversations: Sequence[Conversation], vision: Vision, device: str = "cpu"
) -> list[tuple[list[int], BatchFeature]]:
    """Split a batch into batches for the model, whose videos have the same number of frames.

    Args:
        processor, conversations, vision, device: as in `encode_llava`.

    Returns:
        Pairs of the conversations' indices and their inputs; conversations without a video are in
        the first.

    Raises:
        DataError, ConfigError: as in `encode_llava`; different frame counts in one conversation.
    """
    loaded = _loaded(conversations, vision)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, conversation in enumerate(loaded):
        groups.setdefault(tuple(sorted(_frames(conversation))), []).append(index)
    still = groups.pop((), [])
    members = list(groups.values()) or [[]]
    members[0] = sorted([*still, *members[0]])
    return [(part, _encode(processor, [loaded[i] for i in part], device)) for part in members]


def _with_times(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation, with each video followed by the times of its frames."""
    return [
        turn
        if isinstance(turn["content"], str)
        else {**turn, "content": [part for given in turn["content"] for part in _timed(given)]}
        for turn in conversation
    ]


def _timed(part: dict[str, Any]) -> list[dict[str, Any]]:
    if part["type"] != "video":
        return [part]
    return [part, {"type": "text", "text": _time_text(part["video"][1])}]


def _time_text(metadata: Any) -> str:
    """LLaVA-Video's prompt text about a video's frames, placed before the question.

    Raises:
        DataError: the metadata lack a frame rate.
    """
    if not metadata.fps:
        rule = "the model's prompt states the times of the frames, which need a frame rate"
        raise DataError("video's frame rate", metadata.fps, rule, "load it with load_own_size")
    length = metadata.duration or metadata.total_num_frames / metadata.fps
    times = metadata.timestamps
    located = ",".join(f"{time:.2f}s" for time in times)
    return (
        f"The video lasts for {length:.2f} seconds, and {len(times)} frames are uniformly sampled "
        f"from it. These frames are located at {located}."
        "Please answer the following questions related to this video.\n"
    )


def _encode(processor: Any, loaded: Sequence[Conversation], device: str) -> BatchFeature:
    check_turns(processor, loaded)
    form = getattr(processor, "video_form", None)
    if form is not None and form.time_text:
        loaded = [_with_times(conversation) for conversation in loaded]
    counts = sorted(set().union(*(_frames(conversation) for conversation in loaded)))
    if len(counts) > 1:
        raise DataError(
            "frames",
            counts,
            "videos of a batch must have the same number of frames for LLaVA",
            "use a batch of one, or sf.data.vision.encode_parts",
        )
    texts = [
        processor.apply_chat_template(
            list(conversation),
            tokenize=False,
            add_generation_prompt=conversation[-1]["role"] == "user",
        )
        for conversation in loaded
    ]
    images = [[part["image"] for part in _parts(talk, "image")] for talk in loaded]
    videos = [part["video"] for talk in loaded for part in _parts(talk, "video")]
    inputs = processor(
        text=texts,
        images=[some for some in images if some] or None,
        videos=[frames for frames, _ in videos] or None,
        text_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
        videos_kwargs={
            "do_sample_frames": False,
            "input_data_format": "channels_last",
            "video_metadata": [facts for _, facts in videos],
        },
    )
    return inputs.to(device)
