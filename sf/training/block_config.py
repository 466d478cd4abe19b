"""The settings of the attention over blocks that a checkpoint is trained with, without torch."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from sf.fields import Positive, Section, TokenRatio

if TYPE_CHECKING:
    from sf.attention.blocks import (
        BlockAttention,
        MobaAttention,
        NsaAttention,
        VideoNsaAttention,
    )

__all__ = ["BlockSettings", "MobaSettings", "NsaSettings", "VideoNsaSettings"]


class BlockSettings(Section):
    """Settings shared by MoBA, NSA and VideoNSA."""

    token_ratio: TokenRatio | None = Field(
        None, description="token ratio of every prompt, instead of a number of blocks"
    )

    @abstractmethod
    def attention(self) -> BlockAttention:
        """The attention with these settings."""

    def expected_ratio(self, length: int) -> float:
        """Token ratio of a prompt of the given length, if no selected blocks overlap."""
        pairs = sum(self._read(place) for place in range(length))
        return (math.sqrt(1 + 8 * pairs) - 1) / 2 / length

    @abstractmethod
    def _read(self, place: int) -> int:
        """Entries that the query at a place reads."""

    def _number(self, place: int, size: int, besides: int, number: int | None) -> int:
        """Blocks that it reads: `sf.attention.blocks.replace.BlockAttention.most`."""
        if self.token_ratio is None:
            assert number is not None, "one of both is set"
            return number
        left = self.token_ratio**2 * (place + 1) - besides - place % size - 1
        return 1 + max(0, round(left / size))

    def _one_of(self, name: str, number: int | None) -> None:
        if (self.token_ratio is None) == (number is None):
            both = "both are" if number is not None else "none is"
            raise ValueError(f"token_ratio or {name} is needed, and {both} set; set one of them")


class MobaSettings(BlockSettings):
    """MoBA (arXiv 2502.13189)."""

    top_k: Positive | None = Field(None, description="blocks per query")
    block: Positive = Field(description="tokens per block")

    @model_validator(mode="after")
    def _one(self) -> MobaSettings:
        self._one_of("top_k", self.top_k)
        return self

    def attention(self) -> MobaAttention:
        """The attention with these settings."""
        from sf.attention.blocks import MobaAttention

        return MobaAttention(self.top_k or 1, self.block, token_ratio=self.token_ratio or 0.0)

    def _read(self, place: int) -> int:
        number = self._number(place, self.block, 0, self.top_k)
        return min(place, (number - 1) * self.block + place % self.block) + 1


def _near_beside_own(place: int, size: int, window: int) -> int:
    """Tokens of a query's window before its own block."""
    return max(0, min(place + 1, window) - place % size - 1)


class NsaSettings(BlockSettings):
    """NSA (arXiv 2502.11089)."""

    top_n: Annotated[int, Field(ge=3)] | None = Field(
        None, description="blocks of the selected branch"
    )
    compress_block: Positive = Field(description="tokens per compressed entry")
    compress_stride: Positive = Field(description="stride of the compressed entries, in tokens")
    select_block: Positive = Field(description="tokens per block of the selected branch")
    window: Positive = Field(description="tokens of the sliding-window branch")

    @model_validator(mode="after")
    def _stride_divides_blocks(self) -> NsaSettings:
        self._one_of("top_n", self.top_n)
        for name in ("compress_block", "select_block"):
            if getattr(self, name) % self.compress_stride:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be a multiple of compress_stride "
                    f"{self.compress_stride}"
                )
        return self

    def attention(self) -> NsaAttention:
        """The attention with these settings."""
        from sf.attention.blocks import NsaAttention

        sizes = self.compress_block, self.compress_stride, self.select_block, self.window
        return NsaAttention(self.top_n or 3, *sizes, token_ratio=self.token_ratio or 0.0)

    def _read(self, place: int) -> int:
        size = self.select_block
        ended = max(0, (place - self.compress_block + 1) // self.compress_stride + 1)
        near = _near_beside_own(place, size, self.window)
        number = self._number(place, size, near + ended, self.top_n)
        return min(place, max(near, (number - 1) * size) + place % size) + 1 + ended


class VideoNsaSettings(BlockSettings):
    """VideoNSA (arXiv 2510.02295): ratios and blocks are of visual tokens among themselves."""

    top_n: Positive | None = Field(None, description="blocks of the selected branch")
    block: Positive = Field(description="tokens per compressed entry and per selected block")
    window: Positive = Field(description="tokens of the sliding-window branch")

    @model_validator(mode="after")
    def _one(self) -> VideoNsaSettings:
        self._one_of("top_n", self.top_n)
        return self

    def attention(self) -> VideoNsaAttention:
        """The attention with these settings."""
        from sf.attention.blocks import VideoNsaAttention

        sizes = self.block, self.window
        return VideoNsaAttention(self.top_n or 1, *sizes, token_ratio=self.token_ratio or 0.0)

    def _read(self, place: int) -> int:
        size, ended = self.block, (place + 1) // self.block
        near = _near_beside_own(place, size, self.window)
        number = self._number(place, size, near + ended, self.top_n)
        return min(place, near + (number - 1) * size + place % size) + 1 + ended
