"""Random visual tokens: what a method that chooses tokens has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sf.attention import Trace, sparsify
from sf.baselines.method import Hyperparameter, Method
from sf.baselines.visual import VisualColumns, watching_visual
from sf.selection import Policy, Scores

__all__ = ["RandomTokens"]


@dataclass(frozen=True)
class RandomTokens(Method):
    """A uniformly drawn share of the prompt's visual tokens, the same in every layer.

    All text stays; positions stay. The draw depends on the prompt's token ids alone, so a question
    gets the same tokens in every batch and every run. A larger ratio keeps a superset. Random
    pruning is a strong baseline (arXiv 2511.02650); that paper also drops visual tokens only.

    Attributes:
        ratio: share of the prompt's visual tokens that is kept, rounded down. The default is
            FastV's.
    """

    name: ClassVar[str] = "random"
    text: ClassVar[str] = "random visual tokens, seeded by the question"
    paper: ClassVar[str] = "2511.02650 (random pruning; seed: ours)"
    decodes_densely: ClassVar[bool] = True
    counts: ClassVar[str] = "text and the visual tokens kept, the same in every layer and its KV"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 0.5, dense=1.0)

    ratio: float = 0.5

    @contextmanager
    def apply(self, model: nn.Module) -> Iterator[Trace]:
        with (
            watching_visual(model) as visual,
            sparsify(model, _Drawn(self.ratio, visual)) as trace,
        ):
            yield trace


@dataclass(frozen=True)
class _Drawn(Policy):
    """Draws in the first layer, for all layers."""

    ratio: float
    visual: VisualColumns
    chosen: dict[str, Tensor] = field(default_factory=dict)

    needs_scores: ClassVar[bool] = False

    @property
    def dense(self) -> bool:
        return self.ratio == 1

    def keep(self, scores: Scores, layer: int) -> Tensor:
        if layer == 0:
            self.chosen["kept"] = self._draw(scores.valid)
        return self.chosen["kept"].to(scores.valid.device)

    def _draw(self, valid_BL: Tensor) -> Tensor:
        visual_BL = self.visual.prompt(valid_BL)
        kept_BL = valid_BL & ~visual_BL
        for row, columns in enumerate(visual_BL):
            places = columns.nonzero()[:, 0]
            # 0.3 * 10 is a little below 3 in float64; that must not cost a token.
            count = int(self.ratio * len(places) + 1e-9)
            order = torch.randperm(len(places), generator=self._generator(row, valid_BL[row]))
            kept_BL[row, places[order[:count].to(places.device)]] = True
        return kept_BL

    def _generator(self, row: int, valid_L: Tensor) -> torch.Generator:
        """Seeded by the row's token ids without padding."""
        ids = self.visual.row_ids(row, valid_L).cpu().to(torch.int64).numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(ids).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)
