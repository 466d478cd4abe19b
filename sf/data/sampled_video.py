"""Metadata of a decoded video for transformers' processors."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.video_utils import VideoMetadata

__all__ = ["SampledVideo"]


@dataclass
class SampledVideo(VideoMetadata):
    """Metadata with the time of every frame; index / fps holds only for a constant rate.

    Attributes:
        seconds: time of each sampled frame, from the video's first frame.
    """

    seconds: list[float] | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds of the sampled frames."""
        return super().timestamps if self.seconds is None else list(self.seconds)
