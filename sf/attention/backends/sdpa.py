"""PyTorch's scaled_dot_product_attention on gathered tokens, for every device.

Shape suffixes: see `base`; R = H / G query heads per KV head, S = R x P.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from sf.attention.backends.named_sdpa import attend
from sf.attention.backends.score_blocks import row_mass

__all__ = ["SdpaBackend"]

# Up to this many scores (heads x probes x length, all rows) are computed in one call.
_SCORE_ELEMENTS = 1 << 21
# Up to this many mask elements, rows of unequal length share one padded call.
_MASK_ELEMENTS = 1 << 21


class SdpaBackend:
    """Gathers the active tokens, then runs dense kernels on them."""

    fuses: bool = False

    @torch.no_grad()
    def probe_mass(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        column_BP: Tensor,
        present_BP: Tensor,
        valid_BL: Tensor,
        scaling: float,
    ) -> Tensor:
        batch, _, length, _ = query_BHLD.shape
        work = torch.promote_types(query_BHLD.dtype, torch.float32)
        picked = column_BP[:, None, :, None].expand(
            -1, query_BHLD.shape[1], -1, query_BHLD.shape[3]
        )
        probe_BHPD = query_BHLD.gather(2, picked).to(work) * scaling
        probe_BGRPD = probe_BHPD.unflatten(1, (key_BGLD.shape[1], -1))
        if probe_BHPD.shape[:3].numel() * length <= _SCORE_ELEMENTS:
            return _batch_mass(probe_BGRPD, key_BGLD.to(work), column_BP, present_BP, valid_BL)
        mass_BL = torch.zeros(batch, length, dtype=work, device=key_BGLD.device)
        for row in range(batch):
            column_P = column_BP[row][present_BP[row]]
            key_GLD = key_BGLD[row]
            where_L = valid_BL[row]
            if not bool(where_L.all()):
                # Without padding, a row gives the same result as alone.
                key_GLD = key_GLD[:, where_L]
                column_P = where_L.cumsum(0)[column_P] - 1
            probe_GRPD = probe_BGRPD[row][:, :, present_BP[row]]
            mass_BL[row, where_L] = row_mass(probe_GRPD, key_GLD.to(work), column_P.tolist())
        return mass_BL

    def prefill(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        value_BGLD: Tensor,
        index_BW: Tensor,
        lengths: list[int],
        scaling: float,
        dropout: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (_gather(part, index_BW) for part in (query_BHLD, key_BGLD, value_BGLD))
        width = index_BW.shape[1]
        if min(lengths) == width:
            out = attend(query, key, value, scaling, causal=True, dropout=dropout)
        elif len(lengths) * width * width <= _MASK_ELEMENTS:
            out = _padded(query, key, value, lengths, scaling, dropout)
        else:
            out = _row_by_row(query, key, value, lengths, scaling, dropout)
        batch, heads, length, _ = query_BHLD.shape
        full = out.new_zeros(batch, length, heads, out.shape[-1])
        # In place on new zeros, which autograd supports; a copy would cost as much as the zeros.
        if batch == 1:
            full[0].index_copy_(0, index_BW[0], out[0].transpose(0, 1))
        else:
            place = index_BW[:, :, None, None].expand(-1, -1, heads, out.shape[-1])
            full.scatter_(1, place, out.transpose(1, 2))
        return full, key, value

    def decode(
        self,
        query_BHND: Tensor,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        batch, heads, new, size = query_BHND.shape
        groups = key_BGKD.shape[1]
        if new == 1:
            # A group's query heads become queries of one KV head, so that nothing is repeated.
            packed = query_BHND.reshape(batch, groups, heads // groups, size)
            out = attend(packed, key_BGKD, value_BGKD, scaling, mask=mask)
            return out.reshape(batch, 1, heads, -1)
        return attend(query_BHND, key_BGKD, value_BGKD, scaling, mask=mask).transpose(1, 2)


def _batch_mass(
    probe_BGRPD: Tensor, key_BGLD: Tensor, column_BP: Tensor, present_BP: Tensor, valid_BL: Tensor
) -> Tensor:
    """Probe mass (B, L) of a batch whose scores fit in memory."""
    batch, groups, repeats, probes, _ = probe_BGRPD.shape
    length = key_BGLD.shape[2]
    score_BGSL = probe_BGRPD.flatten(2, 3) @ key_BGLD.transpose(2, 3)
    score = score_BGSL.view(batch, groups * repeats, probes, length)
    place_L = torch.arange(length, device=column_BP.device)
    seen_BPL = (place_L <= column_BP[..., None]) & valid_BL[:, None] & present_BP[..., None]
    score.masked_fill_(~seen_BPL[:, None], float("-inf"))
    weight = torch.softmax(score, dim=-1)
    # An absent probe sees nothing, so its weights are NaN.
    weight.masked_fill_(~present_BP[:, None, :, None], 0.0)
    return weight.mean(1).sum(1)


def _gather(part_BHLD: Tensor, index_BW: Tensor) -> Tensor:
    """Columns of each row, (B, H, W, D), contiguous."""
    if index_BW.shape[0] == 1:
        return part_BHLD.index_select(2, index_BW[0])
    index = index_BW[:, None, :, None].expand(-1, part_BHLD.shape[1], -1, part_BHLD.shape[3])
    return part_BHLD.gather(2, index)


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float, dropout: float
) -> Tensor:
    """Each row at its own length, (B, H, W, D); 0 at the padding."""
    pieces = []
    for row, count in enumerate(lengths):
        start = query.shape[2] - count
        q, k, v = (part[row : row + 1, :, start:] for part in (query, key, value))
        piece = attend(q, k, v, scaling, causal=True, dropout=dropout)
        pieces.append(pad(piece, (0, 0, start, 0)))
    return torch.cat(pieces)


def _padded(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float, dropout: float
) -> Tensor:
    """All rows in one call, left-padded, (B, H, W, D); 0 at the padding."""
    width = query.shape[2]
    place = torch.arange(width, device=query.device)
    count = torch.tensor(lengths, device=query.device)
    real_BW = place >= width - count[:, None]
    causal_WW = place[:, None] >= place
    # Padding attends to itself, so that no row of the softmax is empty.
    own_WW = place[:, None] == place
    mask = causal_WW & (real_BW[:, None, :] | own_WW)
    out = attend(query, key, value, scaling, mask=mask[:, None], dropout=dropout)
    return out * real_BW[:, None, :, None]
