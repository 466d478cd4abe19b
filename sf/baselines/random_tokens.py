"""Random visual tokens: the baseline for methods that select tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sf.baselines.visual import VisualColumns, VisualPolicy, VisualShare
from sf.selection import Scores

__all__ = ["RandomTokens"]


@dataclass(frozen=True)
class RandomTokens(VisualShare):
    """A uniformly drawn share of the prompt's visual tokens, the same in every layer.

    The draw depends on the prompt's token ids alone, so a question gets the same tokens in every
    batch and every run. A larger ratio keeps a superset. Random pruning is a strong baseline
    (arXiv 2511.02650); that paper also drops visual tokens only.
    """

    name: ClassVar[str] = "random"
    text: ClassVar[str] = "random visual tokens, seeded by the question"
    paper: ClassVar[str] = "2511.02650 (random pruning; seed: ours)"
    counts: ClassVar[str] = "text and the visual tokens kept, the same in every layer and its KV"

    def policy(self, model: Any, visual: VisualColumns) -> VisualPolicy:
        return _Drawn(self.ratio, visual)


@dataclass(frozen=True)
class _Drawn(VisualPolicy):
    """Draws in the first layer, for all layers."""

    needs_scores: ClassVar[bool] = False

    def keep(self, scores: Scores, layer: int) -> Tensor:
        if layer == 0:
            self.chosen["kept"] = self._draw(scores.valid)
        return self.chosen["kept"].to(scores.valid.device)

    def _draw(self, valid_BL: Tensor) -> Tensor:
        visual_BL = self.visual.prompt(valid_BL)
        kept_BL = valid_BL & ~visual_BL
        for row, count in enumerate(self.num_kept(visual_BL).tolist()):
            places = visual_BL[row].nonzero()[:, 0]
            order = torch.randperm(len(places), generator=self._generator(row, valid_BL[row]))
            kept_BL[row, places[order[:count].to(places.device)]] = True
        return kept_BL

    def _generator(self, row: int, valid_L: Tensor) -> torch.Generator:
        """Seeded by the row's token ids without padding."""
        ids = self.visual.row_ids(row, valid_L).cpu().to(torch.int64).numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(ids).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)
