"""The active tokens of a batch in one buffer without padding, row after row.

Shape suffixes: see `base`; T packed tokens, the sum of the rows' active columns. With two rows of
three columns, of which one and two are active:

    index    . . 2      lengths 1 2      place  2 3 5      ends  0 1 3
             . 0 2
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from sf.attention.backends.named_sdpa import attend

__all__ = [
    "Packing",
    "attend_planned",
    "attend_rows",
    "attend_uniform",
    "planned_length",
]

# Multiples of this have a cuDNN plan: 64 plans cover layers that keep up to 32,768 tokens.
_PLAN_LENGTHS = 512


@dataclass(frozen=True)
class Packing:
    """The packing of each row's last `lengths[row]` entries of `index_BW`.

    Nothing synchronises with the device, since the host knows the lengths.

    Attributes:
        index_BW: int64, columns of the entries of a left-padded buffer.
        lengths: packed tokens of each row, on the host.
        columns: of a row in the unpacked tensors.
    """

    index_BW: Tensor
    lengths: list[int]
    columns: int

    @cached_property
    def line_BW(self) -> Tensor:
        """int64, row x columns + column of each entry."""
        rows = len(self.lengths)
        if rows == 1:
            return self.index_BW
        first = torch.arange(0, rows * self.columns, self.columns, device=self.index_BW.device)
        return self.index_BW + first[:, None]

    @property
    def width(self) -> int:
        """W."""
        return self.index_BW.shape[1]

    @property
    def uniform(self) -> bool:
        """Whether all rows have the same length."""
        return min(self.lengths) == self.width

    @cached_property
    def place_T(self) -> Tensor:
        """int64, row x columns + column of each packed token."""
        return _last(self.line_BW, self.lengths)

    @cached_property
    def slot_T(self) -> Tensor:
        """int64, its index among the B x W entries of a left-padded buffer."""
        every = torch.arange(self.index_BW.numel(), device=self.index_BW.device)
        return _last(every.view(self.index_BW.shape), self.lengths)

    @cached_property
    def ends_C(self) -> Tensor:
        """int32 (B + 1,), row boundaries in the packed buffer ("cu_seqlens")."""
        ends = torch.tensor(list(accumulate(self.lengths, initial=0)), dtype=torch.int32)
        return ends.to(self.index_BW.device, non_blocking=True)

    def take(self, part_BHLD: Tensor) -> Tensor:
        """The packed tokens of an unpacked tensor, (T, H, D); differentiable."""
        return _lines(part_BHLD).index_select(0, self.place_T)

    def take_padded(self, part_BGLD: Tensor) -> Tensor:
        """All W entries of each row, (B, W, G, D), contiguous; differentiable."""
        taken = _lines(part_BGLD).index_select(0, self.line_BW.reshape(-1))
        return taken.view(*self.line_BW.shape, *taken.shape[1:])

    def spread(self, out_THD: Tensor) -> Tensor:
        """(B, L, H, D) with zeros at unpacked columns; differentiable."""
        batch = len(self.lengths)
        full = out_THD.new_zeros(batch * self.columns, *out_THD.shape[1:])
        full.index_copy_(0, self.place_T, out_THD)
        return full.view(batch, self.columns, *out_THD.shape[1:])


def attend_uniform(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    packing: Packing,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Causal attention for rows of equal length, in one call; (T, H, D)."""
    query, key, value = _rows_of(packing, query_THD, key_TGD, value_TGD)
    out_BHWD = attend(query, key, value, scaling, causal=True, dropout=dropout)
    return out_BHWD.transpose(1, 2).flatten(0, 1)


def planned_length(width: int) -> int:
    """The next length that has a cuDNN plan."""
    return width + -width % _PLAN_LENGTHS


def attend_planned(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    packing: Packing,
    scaling: float,
    dropout: float,
) -> Tensor:
    """`attend_uniform` with cuDNN, at the next multiple of 512 tokens; (T, H, D).

    Each row is padded with zeros, which the causal mask hides from all real queries.
    """
    extra = planned_length(packing.width) - packing.width
    query, key, value = (
        pad(part, (0, 0, 0, extra)) for part in _rows_of(packing, query_THD, key_TGD, value_TGD)
    )
    out_BHWD = attend(query, key, value, scaling, causal=True, dropout=dropout, plans=True)
    return out_BHWD[:, :, : packing.width].transpose(1, 2).flatten(0, 1)


def _rows_of(packing: Packing, *parts_THD: Tensor) -> tuple[Tensor, ...]:
    """(B, H, W, D), for rows of equal length."""
    shape = (len(packing.lengths), packing.width)
    return tuple(part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in parts_THD)


def attend_rows(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    packing: Packing,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Causal attention within each row, one call per row; (T, H, D). Any device and dtype."""
    parts = (part.split(packing.lengths) for part in (query_THD, key_TGD, value_TGD))
    pieces = []
    for row in zip(*parts, strict=True):
        query, key, value = (part.transpose(0, 1)[None] for part in row)
        if query.shape[2]:
            out_1HWD = attend(query, key, value, scaling, causal=True, dropout=dropout)
            pieces.append(out_1HWD[0].transpose(0, 1))
    return torch.cat(pieces) if pieces else query_THD


def _lines(part_BHLD: Tensor) -> Tensor:
    """(B x L, H, D); a view for a single row, and for tensors stored as (B, L, H, D)."""
    if part_BHLD.shape[0] == 1:
        return part_BHLD[0].transpose(0, 1)
    return part_BHLD.transpose(1, 2).flatten(0, 1)


def _last(part_BW: Tensor, lengths: list[int]) -> Tensor:
    """The last `lengths` entries of each row, concatenated."""
    width = part_BW.shape[1]
    if min(lengths) == width:
        return part_BW.reshape(-1)
    return torch.cat([part_BW[row, width - length :] for row, length in enumerate(lengths)])
