"""Attention of queries to chosen blocks of keys, shared by MoBA, NSA and VideoNSA.

Blocks are counted from a row's first valid token, so padding changes nothing. Shape suffixes:
B rows, H heads, G KV heads, C choosers (H, or G if a group of heads chooses jointly), L queries,
S columns, N blocks, R = H / C heads of a chooser, M chosen (query, block) pairs, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Place", "attend", "blocks_within", "seen_in_blocks"]

MASKED_ELEMENTS = 2**20
"""Up to this many (query, column) pairs, one masked attention is faster than gathering."""


@dataclass(frozen=True)
class Place:
    """The positions of queries and keys of a forward pass in their rows.

    Attributes:
        position: int64 (B, L), each query's position among its row's valid tokens.
        order: int64 (B, S), columns with the valid ones first; None without padding.
    """

    position: Tensor
    order: Tensor | None

    @classmethod
    def of(cls, valid_BS: Tensor, queries: int) -> Place:
        """The last `queries` columns are the queries; `valid_BS` is False on padding."""
        position = (valid_BS.long().cumsum(-1) - 1).clamp(min=0)[:, -queries:]
        if bool(valid_BS.all()):
            return cls(position, None)
        return cls(position, (~valid_BS).to(torch.uint8).argsort(dim=-1, stable=True))

    def align(self, part_BGSD: Tensor) -> Tensor:
        """Each row's valid tokens first, in order; the rest is never read."""
        if self.order is None:
            return part_BGSD
        return part_BGSD.gather(2, self.order[:, None, :, None].expand_as(part_BGSD))


def blocks_within(position_BL: Tensor, size: int, count: int, window: int) -> Tensor:
    """bool (B, 1, L, N), the blocks that contain any of a query's last `window` tokens."""
    block = torch.arange(count, device=position_BL.device)
    position = position_BL[:, None, :, None]
    first = (position - window + 1).clamp(min=0) // size
    return (block >= first) & (block <= position // size)


def seen_in_blocks(position_BL: Tensor, size: int, count: int, window: int | None) -> Tensor:
    """int64 (B, 1, L, N), visible tokens of each block, within a query's last `window` tokens."""
    begin = torch.arange(count, device=position_BL.device) * size
    position = position_BL[:, None, :, None]
    end = torch.minimum(begin + size, position + 1)
    if window is not None:
        begin = torch.maximum(begin, position - window + 1)
    return (end - begin).clamp(min=0)


def attend(
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    position_BL: Tensor,
    chosen_BCLN: Tensor,
    size: int,
    scaling: float,
    window: int | None = None,
) -> Tensor:
    """Causal softmax attention of each query over the tokens of its chosen blocks; differentiable.

    Args:
        key_BGSD, value_BGSD: aligned (`Place.align`).
        position_BL: of the queries.
        chosen_BCLN: bool; each query has at least one block with a visible token.
        size: tokens per block.
        window: a query sees at most its last `window` tokens, including itself.

    Returns:
        (B, H, L, D) in the queries' dtype.
    """
    few = query_BHLD.shape[2] * key_BGSD.shape[2] <= MASKED_ELEMENTS
    form = _masked if few else _gathered
    return form(query_BHLD, key_BGSD, value_BGSD, position_BL, chosen_BCLN, size, scaling, window)


def _masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    chosen: Tensor,
    size: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """One attention over all columns, with weight 0 for blocks that are not chosen or lie ahead.

    Example: blocks of two; query 5 chose its own block and the first; window None:

        1 1 0 0 1 1 0 0
    """
    heads, columns = query.shape[1], key.shape[2]
    column = torch.arange(columns, device=key.device)
    seen = column <= position[:, None, :, None]
    if window is not None:
        seen = seen & (column > position[:, None, :, None] - window)
    mask = chosen.repeat_interleave(size, dim=-1)[..., :columns] & seen
    share = heads // key.shape[1]
    return scaled_dot_product_attention(
        query,
        key.repeat_interleave(share, 1),
        value.repeat_interleave(share, 1),
        attn_mask=mask.repeat_interleave(heads // mask.shape[1], 1),
        scale=scaling,
    )


def _gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    chosen: Tensor,
    size: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend block by block for the queries that chose it, and join the parts by softmax sums."""
    batch, heads, length, width = query.shape
    choosers, columns = chosen.shape[1], key.shape[2]
    each = heads // choosers
    exact = torch.promote_types(query.dtype, torch.float32)
    query_BCLRD = query.view(batch, choosers, each, length, width).transpose(2, 3)
    position_BCL = position[:, None].expand(-1, choosers, -1)
    count_BCN = chosen.sum(2)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for block, most in enumerate(count_BCN.amax((0, 1)).tolist()):
        if not most:
            continue
        # Queries that chose the block come first; rows with fewer are padded with others.
        at = chosen[..., block].to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        at = at[..., :most]
        real = torch.arange(most, device=at.device) < count_BCN[..., block, None]
        asked = query_BCLRD.gather(2, _wide(at, each, width)).flatten(2, 3)
        keys_of_block = slice(block * size, min((block + 1) * size, columns))
        k, v = (
            part[:, :, keys_of_block].repeat_interleave(choosers // part.shape[1], 1)
            for part in (key, value)
        )
        score = (asked @ k.transpose(2, 3)).to(exact).unflatten(2, (most, each)) * scaling
        column = torch.arange(keys_of_block.start, keys_of_block.stop, device=key.device)
        own_position = position_BCL.gather(2, at)[..., None]
        seen = (column <= own_position) & real[..., None]
        if window is not None:
            seen = seen & (column > own_position - window)
        score = score.masked_fill(~seen[..., None, :], -torch.inf)
        top = score.detach().amax(-1)
        weight = (score - top.clamp(min=torch.finfo(exact).min)[..., None]).exp()
        out = (weight.to(v.dtype).flatten(2, 3) @ v).unflatten(2, (most, each))
        parts.append((at, top, weight.sum(-1), out))
    at, top, total, out = (torch.cat(pieces, 2) for pieces in zip(*parts, strict=True))
    place = at[..., None].expand_as(top)
    peak = top.new_full((batch, choosers, length, each), torch.finfo(exact).min)
    peak = peak.scatter_reduce(2, place, top, "amax")
    scale = (top - peak.gather(2, place)).exp()
    total = torch.zeros_like(peak).scatter_add(2, place, total * scale)
    joined = out.new_zeros(batch, choosers, length, each, width, dtype=exact)
    joined = joined.scatter_add(2, _wide(at, each, width), out.to(exact) * scale[..., None])
    joined = joined / total.clamp(min=torch.finfo(exact).tiny)[..., None]
    return joined.transpose(2, 3).reshape(batch, heads, length, width).to(query.dtype)


def _wide(at_BCM: Tensor, each: int, width: int) -> Tensor:
    return at_BCM[..., None, None].expand(-1, -1, -1, each, width)
