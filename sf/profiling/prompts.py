"""Prompts: random text of an exact length, or a video of growing length.

A video passes through the model's processor and vision tower. Its frames are drawn here (a square
that moves over a gradient), so that no file is needed. Longer prompts take more frames of a given
file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sf.errors import ConfigError
from sf.profiling.clock import Clock

__all__ = ["milliseconds", "prompt_ids", "text_inputs", "video_encoder"]

QUESTION = "What happens in this video?"
FPS = 2.0
PATCH = 14  # pixels of a side; 2 x 2 patches of two frames become one token
_WORDS = 60  # most tokens of the chat template and the question


def prompt_ids(model: Any, batch: int, length: int, seed: int) -> torch.Tensor:
    """Random text tokens (batch, length), int64, on the model's device, without special tokens.

    Args:
        model: its configuration lists the special tokens.
        batch: rows.
        length: tokens per row.
        seed: of the random tokens.
    """
    text = model.config.get_text_config()
    special = {
        value
        for config in (model.config, text, model.generation_config)
        for key, value in config.to_dict().items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    usable = torch.tensor([at for at in range(text.vocab_size) if at not in special])
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(usable), (batch, length), generator=generator)
    return usable[picks].to(model.device)


def text_inputs(model: Any, batch: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of `generate` for a prompt of random text; see `prompt_ids`."""
    ids = prompt_ids(model, batch, length, seed)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def video_encoder(
    model: Any,
    processor: Any,
    batch: int,
    length: int,
    *,
    side: int = 224,
    file: Path | None = None,
) -> Callable[[], Mapping[str, Any]]:
    """A function that creates `generate` inputs of about `length` tokens: a video and a question.

    Calling it includes everything that a user waits for: decoding a file, resizing, tokenising and
    the copy to the device. Drawn frames are created beforehand.

    Args:
        model: of the Qwen2-VL line.
        processor: its processor; None for random weights, whose tower then reads random pixels of
            the same size, between random words.
        batch: rows, each with the same video.
        length: prompt tokens; the video gets the largest even number of frames within it, at
            least two.
        side: height and width of the drawn frames in pixels, a multiple of 28.
        file: a video to use instead, resized to at most `side` x `side` pixels per frame.

    Raises:
        ConfigError: a file, or a model of another family, without a processor.
        DataError: the file cannot be read.
    """
    from sf.data.vision import encode
    from sf.sections import Vision

    frames = _frames_for(length, side)
    if processor is None:
        if file is not None or not hasattr(model.config, "vision_start_token_id"):
            raise ConfigError(
                "prompts",
                "video" if file is None else str(file),
                "without a processor, only the Qwen2-VL line reads videos, and only drawn ones",
                "profile a checkpoint, or use text prompts",
            )
        return lambda: _random_video(model, batch, frames, side)
    vision = Vision(
        image_min_pixels=784,
        image_max_pixels=side * side,
        video_min_pixels=784,
        video_max_pixels=side * side,
        video_max_frames=frames,
        video_fps=FPS,
    )
    shown = {"video": _drawn(frames, side)} if file is None else {"path": str(file)}
    parts = [{"type": "video", **shown}, {"type": "text", "text": QUESTION}]
    turns = [[{"role": "user", "content": parts}] for _ in range(batch)]
    return lambda: dict(encode(processor, turns, vision, str(model.device)))


def milliseconds(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Wall time of each repeat in milliseconds, until the device has received the result."""
    clock, taken = Clock(device), []
    for _ in range(repeats):
        clock.synchronize()
        start = time.perf_counter()
        call()
        clock.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def _random_video(model: Any, batch: int, frames: int, side: int) -> dict[str, torch.Tensor]:
    """Inputs as from a processor for `frames` square frames, with random pixels and words."""
    config, patches = model.config, (side // PATCH) ** 2
    pairs = frames // 2
    words = prompt_ids(model, batch, _WORDS // 2, seed=frames)
    marks = [config.vision_start_token_id, config.vision_end_token_id]
    start, end = (words.new_full((batch, 1), mark) for mark in marks)
    video = words.new_full((batch, pairs * patches // 4), config.video_token_id)
    ids = torch.cat([start, video, end, words], dim=1)
    generator = torch.Generator(model.device).manual_seed(frames)
    shape = (batch * pairs * patches, 3 * 2 * PATCH * PATCH)
    pixels = torch.randn(shape, generator=generator, device=model.device).to(model.dtype)
    grid = [[pairs, side // PATCH, side // PATCH]] * batch
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == config.video_token_id).long(),
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor(grid, device=model.device),
    }
    if config.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.full((batch,), 2 / FPS, device=model.device)
    return inputs


def _frames_for(length: int, side: int) -> int:
    """Number of frames whose visual tokens fit in the prompt with the text around them."""
    cells = (side // 28) ** 2
    return max(2, 2 * ((length - _WORDS) // cells))


def _drawn(frames: int, side: int) -> tuple[Any, Any]:
    """uint8 (frames, side, side, 3) and transformers' metadata."""
    import numpy as np
    from transformers.video_utils import VideoMetadata

    ramp = np.linspace(0, 160, side, dtype=np.uint8)
    video = np.zeros((frames, side, side, 3), dtype=np.uint8)
    video[..., 0], video[..., 1] = ramp[:, None], ramp[None, :]
    block = side // 4
    for at in range(frames):
        row = int((side - block) * (0.5 + 0.5 * np.sin(0.37 * at)))
        column = int((side - block) * (0.5 + 0.5 * np.cos(0.23 * at)))
        video[at, row : row + block, column : column + block] = (230, 60, 40)
    metadata = VideoMetadata(
        total_num_frames=frames,
        fps=FPS,
        width=side,
        height=side,
        duration=frames / FPS,
        frames_indices=list(range(frames)),
    )
    return video, metadata
