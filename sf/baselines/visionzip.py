"""VisionZip (arXiv 2412.04467): visual tokens are chosen and merged before the language model.

Shape suffixes: P patches, N cells (2 x 2 patches, one visual token each), U patches of a cell, C
width of the vision tower, H its heads, D their size.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sf.baselines.method import Hyperparameter, share_of
from sf.baselines.tower_pruning import TowerPruning
from sf.baselines.vision_tower import Seen, watching_tower
from sf.errors import ConfigError

__all__ = ["VisionZip"]


@dataclass(frozen=True)
class VisionZip(TowerPruning):
    """Keeps dominant tokens and merges the rest into a few contextual ones (section 3).

    Each image, and each time step of a video, keeps the share `ratio` of its tokens. 10 of 64 of
    them are contextual, as in the paper's settings, the others dominant:
    - dominant: the tokens that receive most attention in the vision tower. Qwen's towers have no
      CLS token; as for other towers without one, it is the mean over queries and heads.
    - contextual: every (rest / count)-th of the rest, plus the mean of those of the rest whose keys
      are most similar to its key (cosine), as in the authors' code.

    Adapted to Qwen2-VL and Qwen2.5-VL (ours): attention and keys are those of the last block with
    full attention, the last one in the released models, not the last but one, as its output is what
    goes into the patch merger; keys are taken before rotary positions and averaged over heads, as
    scores are over a cell's patches; features merge cell by cell ahead of the patch merger. A kept
    token keeps the position that it has in the whole prompt.

    Attributes:
        ratio: share of the visual tokens that is left, rounded down, at least one each; 192 of 576
            is one of the paper's settings.
        contextual: share of contextual tokens among those that are left.
    """

    name: ClassVar[str] = "visionzip"
    text: ClassVar[str] = "visual tokens picked and merged by the vision tower's own attention"
    paper: ClassVar[str] = "2412.04467 section 3 (adapted to Qwen's towers)"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 1 / 3, dense=1.0)

    ratio: float = 1 / 3
    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual < 1:
            raise ConfigError("contextual", self.contextual, "must be in [0, 1)")

    def watch(self, model: Any) -> AbstractContextManager[None]:
        return watching_tower(model, self._zip)

    def _zip(self, seen: Seen, cell_NUC: Tensor) -> Tensor:
        """The cells that go into the patch merger; those that are left out are NaN."""
        parts = zip(
            seen.received().split(seen.sizes),
            seen.keys().split(seen.sizes),
            cell_NUC.split(seen.sizes),
            strict=True,
        )
        return torch.cat([self._zip_one(*part) for part in parts])

    def _zip_one(self, score_N: Tensor, key_ND: Tensor, cell_NUC: Tensor) -> Tensor:
        """One image or time step."""
        cells = len(score_N)
        left = max(1, share_of(cells, self.ratio))
        if left == cells:
            return cell_NUC
        merged = share_of(left, self.contextual)
        order = score_N.argsort(dim=0, descending=True, stable=True)
        dominant = order[: left - merged]
        out = torch.full_like(cell_NUC, math.nan)
        out[dominant] = cell_NUC[dominant]
        if merged:
            rest = order[left - merged :].sort().values
            step = len(rest) // merged
            is_target = torch.zeros(len(rest), dtype=torch.bool, device=rest.device)
            is_target[: step * merged : step] = True
            unit = torch.nn.functional.normalize(key_ND[rest], dim=-1)
            nearest = (unit[~is_target] @ unit[is_target].T).argmax(-1)
            target, others = cell_NUC[rest[is_target]], cell_NUC[rest[~is_target]]
            total = torch.zeros_like(target).index_add_(0, nearest, others)
            count = torch.bincount(nearest, minlength=merged).clamp(min=1)
            out[rest[is_target]] = target + total / count[:, None, None].to(total.dtype)
        return out
