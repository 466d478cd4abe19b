"""What transformers' processors are told about a decoded video."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.video_utils import VideoMetadata

__all__ = ["SampledVideo"]


@dataclass
class SampledVideo(VideoMetadata):
    """Metadata with the time of every frame, which index / fps gives for a constant rate only.

    Attributes:
        seconds: when each sampled frame is shown, from the video's first frame.
    """

    seconds: list[float] | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds of the sampled frames."""
        return super().timestamps if self.seconds is None else list(self.seconds)
