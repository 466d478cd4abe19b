"""MoBA, mixture of block attention (arXiv 2502.13189, eqs. 2-6).

Shape suffixes: B rows, H heads, G KV heads, L queries, S columns, N blocks, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sf.attention.blocks.attend import attend, seen_in_blocks
from sf.attention.blocks.replace import BlockAttention, Forward

__all__ = ["MobaAttention"]


@dataclass(frozen=True)
class MobaAttention(BlockAttention):
    """Each query reads `top_k` blocks: its own, and earlier ones with the closest mean key.

    s_i = <q, mean(K of block i)>, per head; the choice has no gradient and no weights. A query's
    own block counts towards `top_k` and is read causally. A last, partial block has no mean, since
    it can only be a query's own block.

    Attributes:
        top_k: blocks per query; published 3.
        block_size: tokens per block; published 512.
    """

    top_k: int = 3
    block_size: int = 512

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
        position, size = forward.place.position, self.block_size
        chosen = self.choose(query_BHLD, key_BGSD, position)
        seen = seen_in_blocks(position, size, chosen.shape[-1], None)
        forward.count(module.layer_idx, (chosen * seen).sum(-1))
        return attend(query_BHLD, key_BGSD, value_BGSD, position, chosen, size, scaling)

    @torch.no_grad()
    def choose(self, query_BHLD: Tensor, key_BGSD: Tensor, position_BL: Tensor) -> Tensor:
        """bool (B, H, L, N), the blocks of each query; keys are aligned."""
        size, heads, columns = self.block_size, query_BHLD.shape[1], key_BGSD.shape[2]
        full = columns // size
        exact = torch.promote_types(query_BHLD.dtype, torch.float32)
        mean_BGND = key_BGSD[:, :, : full * size].unflatten(2, (full, size)).to(exact).mean(3)
        mean_BHND = mean_BGND.repeat_interleave(heads // key_BGSD.shape[1], 1)
        own = (position_BL // size)[:, None, :, None]
        past = torch.arange(full, device=own.device) < own
        score = (query_BHLD.to(exact) @ mean_BHND.transpose(2, 3)).masked_fill(~past, -torch.inf)
        wanted = self.most(self.top_k, position_BL, size) - 1
        best = score.topk(min(int(wanted.max()), full), dim=-1).indices
        wanted = torch.arange(best.shape[-1], device=own.device) < wanted
        shape = (*query_BHLD.shape[:3], -(-columns // size))
        chosen = torch.zeros(shape, dtype=torch.bool, device=own.device)
        chosen = chosen.scatter(3, best, wanted.expand_as(best))
        chosen[..., :full] &= past
        return chosen.scatter(3, own.expand(-1, heads, -1, -1), True)
