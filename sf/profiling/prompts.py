"""What is asked: random text of an exact length, or a video of growing length.

A video goes through the model's own processor and vision tower; its frames are drawn here (a square
that wanders over a gradient), so that no file is needed. A file of one's own is taken as it is,
with more of its frames for longer prompts.
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
_WORDS = 60  # of the chat template and the question, at most


def prompt_ids(model: Any, batch: int, length: int, seed: int) -> torch.Tensor:
    """Random text tokens (batch, length), int64, on the model's device; no special ones.

    Args:
        model: its configuration says which tokens are special.
        batch: rows.
        length: tokens a row.
        seed: of the draw.
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
    """What makes inputs of `generate` for a question about a video, about `length` tokens long.

    Calling it does what a user waits for: decoding (of a file), resizing, tokenising, the copy to
    the device. Drawn frames are drawn here, before.

    Args:
        model: of the Qwen2-VL line.
        processor: its processor; None is an error, random weights have none.
        batch: rows, each with the same video.
        length: prompt tokens; the video gets the even number of frames that comes closest without
            going over, two at least.
        side: height and width of the drawn frames in pixels, a multiple of 28.
        file: a video to show in their place, resized to `side` x `side` pixels a frame at most.

    Raises:
        ConfigError: no processor.
        DataError: the file cannot be read.
    """
    from sf.config import Vision
    from sf.data.vision import encode

    if processor is None:
        raise ConfigError(
            "profile_prompts",
            "video",
            "random weights have no processor that could read a video",
            "profile a checkpoint, or use text prompts",
        )
    frames = _frames_for(length, side)
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
    """Wall time of each repeat until the device has what the call gave it."""
    clock, taken = Clock(device), []
    for _ in range(repeats):
        clock.synchronize()
        start = time.perf_counter()
        call()
        clock.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def _frames_for(length: int, side: int) -> int:
    """Frames whose visual tokens leave room for the words around them."""
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
