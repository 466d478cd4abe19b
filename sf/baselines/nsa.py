"""NSA (arXiv 2502.11089): native sparse attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sf.baselines.gated_blocks import GatedBlocks

__all__ = ["NSA"]


@dataclass(frozen=True)
class NSA(GatedBlocks):
    """Compressed, selected and sliding-window attention, added under learnt gates.

    o = sum of g_c attention(q, K_c, V_c) over the branches (eqs. 5-12); `sf.attention.blocks.nsa`
    says where it differs from the paper. `top_n` is at least 3.
    """

    name: ClassVar[str] = "nsa"
    text: ClassVar[str] = "compressed, selected and sliding-window attention under learnt gates"
    paper: ClassVar[str] = "2502.11089 eqs. (5)-(12)"
    counts: ClassVar[str] = (
        "tokens whose dense attention reads as many entries as the queries do: selected or near "
        "keys, and compressed ones"
    )
