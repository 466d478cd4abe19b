"""From conversations to model inputs: media loading, resizing, left padding.

Base training, calibration, rollouts, the training forward pass and the benchmarks all use
`encode`, so they get the same pixels, frames and time stamps. Resizing is done here and disabled in
the processor, whose saved `size` would otherwise silently override the configured bounds. The
resulting grid is checked against the expected one.

Shape legend: B rows, L prompt tokens, M media, T frames, H height, W width, C colour channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sf.data.budget import FACTOR, TEMPORAL_PATCH, pixel_bounds, resized_size
from sf.data.control_tokens import check_turns
from sf.data.frame_cache import FrameCache
from sf.data.images import load_image, load_rgb
from sf.data.llava import encode_llava, encode_llava_parts, is_llava
from sf.data.media import num_decoders
from sf.data.video import load_video, resize_frame
from sf.errors import UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from transformers import BatchFeature

    from sf.sections import Vision

__all__ = [
    "encode",
    "encode_parts",
    "load_image",
    "load_video",
]

Conversation = Sequence[dict[str, Any]]


def _resized_image(image: PIL.Image.Image, vision: Vision) -> np.ndarray:
    """An image resized to the bounds, uint8 [H, W, C]."""
    import numpy as np

    size = resized_size(image.width, image.height, pixel_bounds("image", vision))
    return resize_frame(np.array(image), size)


def _media(
    conversations: Sequence[Conversation], vision: Vision
) -> tuple[list[np.ndarray], list[np.ndarray], list[Any]]:
    """Images, videos and the videos' metadata, in the order of their mention in the text.

    Several media are decoded in parallel. Each is resized during decoding, so memory holds at most
    one full-size frame per thread besides the results.
    """
    parts = [
        part
        for conversation in conversations
        for turn in conversation
        if not isinstance(turn["content"], str)
        for part in turn["content"]
    ]
    pictures = [part for part in parts if part["type"] == "image"]
    clips = [part for part in parts if part["type"] == "video"]
    cache = FrameCache.from_environment()

    def load_picture(part: dict[str, Any]) -> np.ndarray:
        return _resized_image(load_rgb(part), vision)

    def load_clip(part: dict[str, Any]) -> tuple[np.ndarray, Any]:
        return part.get("video") or load_video(part["path"], vision, cache)

    if len(parts) == 1 + sum(part["type"] == "text" for part in parts):  # a thread would not help
        images, loaded = [load_picture(p) for p in pictures], [load_clip(p) for p in clips]
    else:
        with ThreadPoolExecutor(num_decoders()) as pool:
            images, loaded = (
                list(pool.map(load_picture, pictures)),
                list(pool.map(load_clip, clips)),
            )
    return images, [frames for frames, _ in loaded], [facts for _, facts in loaded]


def _check_grid(name: str, grid: Any, media: Sequence[np.ndarray]) -> None:
    """Check that the grid [M, 3] (frames, rows, columns, in patches) is the configured one."""
    side = FACTOR // 2
    expected = [
        [
            1 if array.ndim == 3 else -(-len(array) // TEMPORAL_PATCH),
            array.shape[-3] // side,
            array.shape[-2] // side,
        ]
        for array in media
    ]
    if grid.tolist() != expected:
        raise UnsupportedModelError(
            name,
            grid.tolist(),
            f"the configured pixel and frame bounds give {expected}",
            "use a processor with patch size 14, merge size 2 and temporal patch size 2",
        )


def encode(
    processor: Any, conversations: Sequence[Conversation], vision: Vision, device: str = "cpu"
) -> BatchFeature:
    """Left-padded model inputs of a batch of conversations.

    Args:
        processor: of Qwen2-VL or Qwen2.5-VL, or of LLaVA (see `sf.data.llava.encode_llava`).
        conversations: B lists of turns (`sf.data.prompts.messages`). Media parts have a "path" or
            the loaded media: a PIL "image", or as "video" the result of `load_video` for the same
            `vision`. A conversation that ends with the user gets the generation prompt.
        vision: pixel and frame bounds; they override the processor's saved ones.
        device: of the tensors.

    Returns:
        `input_ids`, `attention_mask`, `mm_token_type_ids` [B, L]; for images `pixel_values` and
        `image_grid_thw` [M, 3]; for videos `pixel_values_videos`, `video_grid_thw` [M, 3] and, for
        Qwen2.5-VL, `second_per_grid_ts` [M] in seconds.

    Raises:
        DataError: unreadable media, or text with a control token of the model.
        UnsupportedModelError: the processor's grid differs from the one that the bounds give.
    """
    if is_llava(processor):
        return encode_llava(processor, conversations, vision, device)
    check_turns(processor, conversations)
    images, videos, metadata = _media(conversations, vision)
    texts = [
        processor.apply_chat_template(
            list(conversation),
            tokenize=False,
            add_generation_prompt=conversation[-1]["role"] == "user",
        )
        for conversation in conversations
    ]
    inputs = processor(
        text=texts,
        images=images or None,
        videos=videos or None,
        text_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
        images_kwargs={"do_resize": False, "input_data_format": "channels_last"},
        videos_kwargs={
            "do_resize": False,
            "do_sample_frames": False,
            "input_data_format": "channels_last",
            "video_metadata": metadata,
            "cap_pixels_per_frame": False,
        },
    )
    if images:
        _check_grid("image_grid_thw", inputs["image_grid_thw"], images)
    if videos:
        _check_grid("video_grid_thw", inputs["video_grid_thw"], videos)
    return inputs.to(device)


def encode_parts(
    processor: Any, conversations: Sequence[Conversation], vision: Vision, device: str = "cpu"
) -> list[tuple[list[int], BatchFeature]]:
    """Split a batch of conversations into the fewest batches that fit one forward pass each.

    Args:
        processor, conversations, vision, device: as in `encode`.

    Returns:
        Pairs of the conversations' indices and their inputs: one pair for the Qwen families, one
        for each number of frames for LLaVA.

    Raises:
        DataError, UnsupportedModelError: as in `encode`.
    """
    if is_llava(processor):
        return encode_llava_parts(processor, conversations, vision, device)
    everything = list(range(len(conversations)))
    return [(everything, encode(processor, conversations, vision, device))]
