"""The settings of the attention over blocks that a checkpoint is trained with, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from sf.fields import Positive, Section

if TYPE_CHECKING:
    from sf.attention.blocks import MobaAttention, NsaAttention

__all__ = ["MobaSettings", "NsaSettings"]


class MobaSettings(Section):
    """MoBA (arXiv 2502.13189)."""

    top_k: Positive = Field(description="blocks that a query reads")
    block: Positive = Field(description="tokens of a block")

    def attention(self) -> MobaAttention:
        """The attention with these settings."""
        from sf.attention.blocks import MobaAttention

        return MobaAttention(self.top_k, self.block)


class NsaSettings(Section):
    """NSA (arXiv 2502.11089)."""

    top_n: Annotated[int, Field(ge=3)] = Field(description="blocks of the selected branch")
    compress_block: Positive = Field(description="tokens of a compressed entry")
    compress_stride: Positive = Field(description="tokens between two compressed entries")
    select_block: Positive = Field(description="tokens of a block of the selected branch")
    window: Positive = Field(description="tokens of the sliding-window branch")

    @model_validator(mode="after")
    def _stride_divides_blocks(self) -> NsaSettings:
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

        return NsaAttention(
            self.top_n, self.compress_block, self.compress_stride, self.select_block, self.window
        )
