"""EVS, Efficient Video Sampling (arXiv 2510.14624): drops repeated content of a video.

Shape suffixes: T time steps of a video, S tokens of one, C width of their features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sf.baselines.method import Hyperparameter, share_of
from sf.baselines.tower_pruning import VideoPruning

__all__ = ["EVS"]


@dataclass(frozen=True)
class EVS(VideoPruning):
    """Keeps the tokens of each video that differ most from the time step before.

    A token's score is 1 - cos(its features, those of the same place one time step earlier), on the
    features that the language model receives. All tokens of the first time step stay. This is the
    rule at a fixed rate, as vLLM ships it (`video_pruning_rate` = 1 - ratio); a kept token keeps
    the position that it has in the whole prompt.

    Images, and videos of one time step, stay whole.

    Attributes:
        ratio: share of a video's tokens that is left, rounded down, at least those of its first
            time step: a video of T time steps cannot fall below 1 / T.
    """

    name: ClassVar[str] = "evs"
    text: ClassVar[str] = "tokens of a video that differ from the time step before"
    paper: ClassVar[str] = "2510.14624 (fixed rate; default: ours)"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 0.25, dense=1.0)

    ratio: float = 0.25

    def left(self, feature_TSC: Tensor) -> Tensor:
        steps, tokens = feature_TSC.shape[:2]
        similarity = torch.cosine_similarity(feature_TSC[1:], feature_TSC[:-1], dim=-1)
        first = similarity.new_full((1, tokens), torch.inf)
        score = torch.cat([first, 1 - similarity]).flatten()
        count = max(tokens, share_of(steps * tokens, self.ratio))
        left = torch.zeros_like(score, dtype=torch.bool)
        left[score.argsort(descending=True, stable=True)[:count]] = True
        return left.view(steps, tokens)
