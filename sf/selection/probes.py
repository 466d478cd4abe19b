"""The probe queries, whose attention scores the keys (step 1 of ZipVL, arXiv 2410.08584).

Shape suffixes: B rows, L prompt columns (padding included), P probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sf.errors import ConfigError

__all__ = ["Probes", "visible_probes"]


@dataclass(frozen=True)
class Probes:
    """The `recent` last queries and `spread` others, evenly spaced over the rest of the prompt.

    A prompt of at most `recent + spread` tokens uses every query. ZipVL draws the other queries at
    random; here they are the midpoints of `spread` equal parts, so that the kept set of a prompt
    depends neither on a seed nor on the padding of its batch.
    """

    recent: int = 64
    spread: int = 64

    def __post_init__(self) -> None:
        for name in ("recent", "spread"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must be at least 0")
        if self.recent + self.spread == 0:
            raise ConfigError("probes", 0, "at least one probe query is required", "raise recent")

    def columns(self, valid_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the probe queries of each row.

        Args:
            valid_BL: bool, False on padding; the valid columns need not be contiguous.

        Returns:
            column_BP (int64, ascending in each row) and present_BP (bool): rows with fewer probes
            than the widest one have `present` False, and column 0, at their end.
        """
        lengths_B1 = valid_BL.sum(-1, keepdim=True)
        most = self.recent + self.spread
        # No row has more probes than columns, so the width is known without asking the device.
        slot_1P = torch.arange(min(most, valid_BL.shape[-1]), device=valid_BL.device)[None]
        rest_B1 = lengths_B1 - self.recent
        spread_BP = (2 * slot_1P + 1) * rest_B1 // (2 * max(self.spread, 1))
        rank_BP = torch.where(slot_1P < self.spread, spread_BP, lengths_B1 - most + slot_1P)
        rank_BP = torch.where(lengths_B1 <= most, slot_1P, rank_BP)
        present_BP = slot_1P < lengths_B1.clamp(max=most)
        # The k-th valid column of a row: a stable sort puts the valid columns first, in order.
        order_BL = torch.argsort((~valid_BL).to(torch.uint8), dim=-1, stable=True)
        column_BP = order_BL.gather(1, rank_BP.clamp(0, max(valid_BL.shape[-1] - 1, 0)))
        return column_BP.masked_fill(~present_BP, 0), present_BP


def visible_probes(column_BP: Tensor, present_BP: Tensor, width: int) -> Tensor:
    """How many probes can see each key under a causal mask.

    Returns:
        int64 (B, L): probes at or after the column; padding counts are meaningless.
    """
    at_BL = torch.zeros(column_BP.shape[0], width, dtype=torch.long, device=column_BP.device)
    at_BL.scatter_add_(1, column_BP, present_BP.long())
    return at_BL.flip(-1).cumsum(-1).flip(-1)
