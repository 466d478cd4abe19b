"""VideoNSA (arXiv 2510.02295): native sparse attention for visual tokens, dense attention for text.

Shape suffixes: B rows, H heads, G KV heads, L queries, S columns, V visual tokens, T other tokens,
K compressed entries, N blocks, D head size, M model size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from sf.attention.blocks.kinds import Kinds
from sf.attention.blocks.nsa import (
    BRANCHES,
    QUERIES_AT_ONCE,
    attend_compressed,
    gated,
    largest_blocks,
    near_beside_own,
    tokens_read,
)
from sf.attention.blocks.replace import BlockAttention, Forward
from sf.attention.decoder_hooks import Call

__all__ = ["VideoNsaAttention", "Weights"]

NAME = "videonsa"
TEMPERATURE = 0.3
"""Divides the gates' logits, as in the authors' code; not in the paper's text."""


class Weights(nn.Module):
    """The gates that VideoNSA adds to an attention module, as `videonsa`: a two-layer MLP.

    Its width and initialisation (every gate near 0.5) are those of the authors' code.

    Args:
        hidden: of the model.
        heads: attention heads; each has a gate for each branch.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, BRANCHES * heads)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def gates(self, hidden_BVM: Tensor) -> Tensor:
        """(3, B, H, V), each in (0, 1): compressed, selected, window."""
        logit: Tensor = self.outer(gelu(self.inner(hidden_BVM)))
        gate = (logit / TEMPERATURE).sigmoid()
        return gate.unflatten(-1, (-1, BRANCHES)).permute(3, 0, 2, 1)


@dataclass(frozen=True)
class VideoNsaAttention(BlockAttention):
    """Visual tokens attend to visual tokens by NSA; all other tokens attend densely.

    The visual tokens of a prompt, of all its images and videos, form one sequence: blocks, window
    and causality count in it, and text between media is not part of it. A visual query's output is
    the sum over three branches of gate * attention(q, K_branch, V_branch):

    - compressed: mean keys and values of disjoint blocks; a query sees completed blocks;
    - selected: its own block and those before it with the largest compressed attention, summed over
      the heads that share keys, `top_n` in all;
    - window: the last `window` visual tokens.

    A visual query reads no text, not even earlier text. Every other query, also in decoding, reads
    all earlier tokens with the model's own weights: a prompt without visual tokens runs the model's
    own attention.

    From the paper: which tokens attend how, branches, gates by a two-layer MLP and per head, sizes.
    From the authors' code: mean pooling, blocks of one size for both branches, no block fixed but
    the query's own, the MLP's width, GELU, temperature and initialisation, keys and values shared
    by the branches after RoPE. Assumed: images as videos, all media as one sequence. docs/method.md
    lists where we follow the paper's text rather than the code, which adds both attentions at
    every token, keeps text as zero keys, mixes groups of keys, tells visual tokens by their rotary
    positions and masks compressed blocks the other way round.

    Attributes:
        top_n, block, window: selected blocks, tokens per block, tokens of the window; defaults as
            published.
    """

    weights: ClassVar[str] = NAME
    reads_kinds: ClassVar[bool] = True

    top_n: int = 32
    block: int = 64
    window: int = 256

    def new_weights(self, hidden: int, heads: int, size: int) -> Weights:
        return Weights(hidden, heads)

    def applies(self, call: Call, kinds: Kinds | None) -> bool:
        return kinds is not None

    def gates(self, module: Any, hidden_BLM: Tensor, forward: Forward) -> Tensor:
        """(3, B, H, V), of the visual queries."""
        assert forward.kinds is not None
        hidden_BVM = forward.kinds.visual.take(hidden_BLM[:, None])[:, 0]
        gates: Tensor = module.videonsa.gates(hidden_BVM)
        return gates

    def attend(
        self,
        module: Any,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        scaling: float,
        forward: Forward,
        gates: Tensor | None,
    ) -> Tensor:
        kinds, position_BL = forward.kinds, forward.place.position
        assert gates is not None
        assert kinds is not None
        # Keys are aligned: a token's column is its position.
        column = position_BL.gather(1, kinds.visual.column)[:, None, :, None]
        keys, values = (
            part.gather(2, column.expand(-1, part.shape[1], -1, part.shape[3]))
            for part in (key_BGSD, value_BGSD)
        )
        query, place = kinds.visual.take(query_BHLD), kinds.visual.position
        seen, read_BGV = self.attend_visual(query, keys, values, place, scaling, gates)
        text_BT = position_BL.gather(1, kinds.text.column)
        other = attend_all(kinds.text.take(query_BHLD), key_BGSD, value_BGSD, text_BT, scaling)
        read_text = (text_BT[:, None] + 1).expand(-1, read_BGV.shape[1], -1)
        forward.count(module.layer_idx, kinds.join(read_BGV, read_text))
        return kinds.join(seen, other)

    def attend_visual(
        self,
        query_BHVD: Tensor,
        key_BGVD: Tensor,
        value_BGVD: Tensor,
        position_BV: Tensor,
        scaling: float,
        gates_3BHV: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The visual tokens' attention, and the number of entries that each query reads.

        Args:
            position_BV: of the queries among the row's visual tokens.

        Returns:
            (B, H, V, D), and int64 (B, G, V).
        """
        size = self.block
        whole, blocks = key_BGVD.shape[2] // size, -(-key_BGVD.shape[2] // size)
        exact = torch.promote_types(query_BHVD.dtype, torch.float32)
        keys, values = (
            part[:, :, : whole * size].unflatten(2, (whole, size)).to(exact).mean(3).to(part.dtype)
            for part in (key_BGVD, value_BGVD)
        )
        end = (torch.arange(whole, device=position_BV.device) + 1) * size - 1
        compressed, mass = attend_compressed(query_BHVD, keys, values, end, position_BV, scaling)
        own = (position_BV // size)[:, None, :, None]
        ended = (position_BV + 1) // size
        near = near_beside_own(position_BV, size, self.window)
        wanted = self.most(self.top_n, position_BV, size, near + ended)
        chosen = largest_blocks(pad(mass, (0, blocks - whole)), own, wanted)
        given = query_BHVD, key_BGVD, value_BGVD, position_BV
        out = gated(gates_3BHV, compressed, given, chosen, size, self.window, scaling)
        return out, tokens_read(chosen, position_BV, size, self.window) + ended[:, None]


def attend_all(
    query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, position_BT: Tensor, scaling: float
) -> Tensor:
    """Dense causal attention of some queries of a prompt, (B, H, T, D).

    Args:
        key_BGSD, value_BGSD: aligned (`Place.align`).
        position_BT: of the queries in their rows.
    """
    share = query_BHTD.shape[1] // key_BGSD.shape[1]
    key, value = (part.repeat_interleave(share, 1) for part in (key_BGSD, value_BGSD))
    column = torch.arange(key.shape[2], device=key.device)
    outs = [query_BHTD[:, :, :0]]
    for at in range(0, query_BHTD.shape[2], QUERIES_AT_ONCE):
        queries = slice(at, at + QUERIES_AT_ONCE)
        seen = column <= position_BT[:, None, queries, None]
        outs.append(
            scaled_dot_product_attention(query_BHTD[:, :, queries], key, value, seen, scale=scaling)
        )
    return torch.cat(outs, 2)
