"""Visual tokens and text of a prompt, each as a batch of their own.

Shape suffixes: B rows, L columns, M columns of the row with most of a kind, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Kind", "Kinds"]


@dataclass(frozen=True)
class Kind:
    """The columns of one kind.

    Attributes:
        column: int64 (B, M), each row's columns of the kind in order, then others.
        position: int64 (B, M), places among the row's columns of the kind; the last one's again for
            the others, 0 in a row without any.
        rank: int64 (B, L), each column's place in `column`; of a column of the other kind, any.
    """

    column: Tensor
    position: Tensor
    rank: Tensor

    @classmethod
    def of(cls, mask_BL: Tensor) -> Self:
        """The columns where `mask_BL` is True."""
        count_B1 = mask_BL.sum(-1, keepdim=True)
        most = int(count_B1.max())
        order = (~mask_BL).to(torch.uint8).argsort(dim=-1, stable=True)
        place = torch.arange(most, device=mask_BL.device)
        position = torch.minimum(place, (count_B1 - 1).clamp(min=0))
        return cls(order[:, :most], position, (mask_BL.long().cumsum(-1) - 1).clamp(min=0))

    def take(self, part_BHLD: Tensor) -> Tensor:
        """(B, H, M, D), a part's columns of the kind."""
        heads, size = part_BHLD.shape[1], part_BHLD.shape[3]
        return part_BHLD.gather(2, self.column[:, None, :, None].expand(-1, heads, -1, size))


@dataclass(frozen=True)
class Kinds:
    """The queries of a prompt by kind.

    Attributes:
        mask: bool (B, L), True on visual tokens. visual, text: the two kinds, without padding.
    """

    mask: Tensor
    visual: Kind
    text: Kind

    @classmethod
    def of(cls, visual_BL: Tensor, valid_BL: Tensor) -> Self:
        """From the visual tokens and all tokens of a prompt."""
        return cls(visual_BL, Kind.of(visual_BL), Kind.of(valid_BL & ~visual_BL))

    def join(self, visual_BHM: Tensor, text_BHM: Tensor) -> Tensor:
        """Both kinds in the prompt's columns: (B, H, L), or (B, H, L, D) of (B, H, M, D).

        Columns of padding receive some column's values.
        """
        both, visual = torch.cat((visual_BHM, text_BHM), 2), visual_BHM.shape[2]
        column = torch.where(self.mask, self.visual.rank, self.text.rank + visual)
        column = column.clamp(max=both.shape[2] - 1)[:, None]
        wide = column.expand(-1, both.shape[1], -1)
        if both.ndim == 4:
            wide = wide[..., None].expand(-1, -1, -1, both.shape[3])
        return both.gather(2, wide)
