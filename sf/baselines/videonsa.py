"""VideoNSA (arXiv 2510.02295): native sparse attention for visual tokens, dense for text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sf.baselines.gated_blocks import GatedBlocks

__all__ = ["VideoNSA"]


@dataclass(frozen=True)
class VideoNSA(GatedBlocks):
    """Visual tokens read visual tokens by NSA; all other tokens read everything before them.

    `sf.attention.blocks.videonsa` says what is the paper's, what the authors' code's and where it
    differs. A prompt without visual tokens is dense, and so is decoding. `token_ratio` is that of a
    prompt's visual tokens among themselves.
    """

    decodes_densely: ClassVar[bool] = True
    name: ClassVar[str] = "videonsa"
    text: ClassVar[str] = "NSA among visual tokens, dense attention of text to everything"
    paper: ClassVar[str] = "2510.02295 and the authors' code"
    counts: ClassVar[str] = (
        "tokens whose dense attention reads as many entries as the queries do: visual ones as in "
        "nsa, text all earlier tokens"
    )
