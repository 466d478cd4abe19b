"""The form of videos in LLaVA models: pooling of the frames, line-end tokens, times as text.

transformers' LLaVA-OneVision pools every frame bilinearly and ends a whole video with one line-end
token (`image_newline`). LLaVA-NeXT's code knows other forms, of which LLaVA-Video-7B-Qwen2 has one:
a line end after each row of each frame, and the frames' times as text before the question. A
converted checkpoint (`sf convert`) holds its form in config.json under `llava_video`; without the
key a checkpoint is LLaVA-OneVision's own.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sf.errors import UnsupportedModelError

__all__ = ["CONFIG_KEY", "VideoForm", "video_form"]

CONFIG_KEY = "llava_video"

LineEnds = Literal["grid", "frame", "one_token"]
Pooling = Literal["bilinear", "average", "max"]


@dataclass(frozen=True)
class VideoForm:
    """The conversion of a video to tokens.

    Attributes:
        line_ends: a line-end token after each row of each frame ("grid"), after each frame
            ("frame") or after the video ("one_token"): `mm_newline_position` of LLaVA-NeXT.
        pooling: of 2 x 2 tokens of a frame: `mm_spatial_pool_mode` of LLaVA-NeXT. "bilinear" rounds
            an odd number of rows up, the others down.
        time_text: the question is preceded by the video's length and its frames' times:
            `add_time_instruction` of LLaVA-NeXT.
    """

    line_ends: LineEnds = "one_token"
    pooling: Pooling = "bilinear"
    time_text: bool = False

    def pooled(self, side: int) -> int:
        """Rows (and columns) of a pooled frame of `side` x `side` patches."""
        return math.ceil(side / 2) if self.pooling == "bilinear" else side // 2

    def num_tokens(self, frames: int, side: int) -> int:
        """Visual tokens of a video, line ends among them."""
        pooled = self.pooled(side)
        return frames * pooled**2 + max(self.num_lines(frames, side), 1)

    def num_lines(self, frames: int, side: int) -> int:
        """Lines of a video that end with a token each; 0 for "one_token", which ends it once."""
        per_frame = {"grid": self.pooled(side), "frame": 1, "one_token": 0}
        return frames * per_frame[self.line_ends]

    def as_config(self) -> dict[str, Any] | None:
        """The value of `CONFIG_KEY` in config.json; None for LLaVA-OneVision's own form."""
        return None if self == VideoForm() else asdict(self)


def video_form(config: Any) -> VideoForm:
    """The form that a model's configuration names.

    Raises:
        UnsupportedModelError: it names one that is not known.
    """
    values = getattr(config, CONFIG_KEY, None)
    if values is None:
        return VideoForm()
    known = {"line_ends": get_args(LineEnds), "pooling": get_args(Pooling), "time_text": (0, 1)}
    if not isinstance(values, dict) or set(values) != set(known):
        rule = f"must hold {', '.join(known)}"
        raise UnsupportedModelError(CONFIG_KEY, values, rule, "convert the checkpoint again")
    for name, allowed in known.items():
        if values[name] not in allowed:
            rule, remedy = f"must be one of {list(allowed)}", "convert the checkpoint again"
            raise UnsupportedModelError(f"{CONFIG_KEY}.{name}", values[name], rule, remedy)
    return VideoForm(**values)
