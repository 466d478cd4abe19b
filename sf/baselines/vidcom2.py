"""VidCom2, Video Compression Commander (arXiv 2505.14454): keeps unusual content of a video.

Shape suffixes: T time steps of a video, S tokens of one, C width of their features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sf.baselines.method import Hyperparameter
from sf.baselines.tower_pruning import VideoPruning

__all__ = ["VidCom2"]

# Doubled variances of the Gaussian kernels that are added up.
_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
_TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(VideoPruning):
    """Gives unusual time steps more tokens, and keeps the unusual tokens of each.

    As in the authors' code, on the features that the language model receives:
    - the half of the channels with the least variance is normalised to length 1 by token;
    - the similarity of a token to a centre is the sum over a in {1/8, 1/4, 1/2, 1, 2} of
      exp(-distance^2 / 2a); centres are the means over the video and over the time step;
    - a time step's share is ratio (1 + u - mean of u), at most all; u is the softmax over time
      steps, at temperature 0.01, of minus the mean similarity to the video's centre;
    - a time step keeps that share of its tokens, rounded, at least one: those with the least sum of
      both similarities.

    A kept token keeps the position that it has in the whole prompt. Images, and videos of one time
    step, stay whole. Ratio 1 is dense attention (ours; the rule would leave tokens out at 1).

    Attributes:
        ratio: mean share of a video's tokens that is left, up to the rounding and the limits above;
            the default is the paper's.
    """

    name: ClassVar[str] = "vidcom2"
    text: ClassVar[str] = "unusual tokens of a video, more of them in unusual time steps"
    paper: ClassVar[str] = "2505.14454 (as in the authors' code)"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 0.25, dense=1.0)

    ratio: float = 0.25

    def left(self, feature_TSC: Tensor) -> Tensor:
        tokens, channels = feature_TSC.shape[1:]
        variance = feature_TSC.flatten(0, 1).var(0, unbiased=False)
        steady = variance.argsort(stable=True)[: channels // 2]
        unit_TSC = normalize(feature_TSC[..., steady], dim=-1)
        in_video_TS = _similarity(unit_TSC, unit_TSC.mean((0, 1), keepdim=True))
        in_step_TS = _similarity(unit_TSC, unit_TSC.mean(1, keepdim=True))
        unusual_T = (-in_video_TS.mean(1) / _TEMPERATURE).softmax(0)
        share_T = self.ratio * (1 + unusual_T - unusual_T.mean())
        count_T = (share_T * tokens).round().long().clamp(min=1)
        rank_TS = (in_video_TS + in_step_TS).argsort(dim=1, stable=True).argsort(dim=1)
        return rank_TS < count_T[:, None]


def _similarity(unit_TSC: Tensor, centre: Tensor) -> Tensor:
    squared_TS = (unit_TSC - centre).square().sum(-1)
    return torch.stack([torch.exp(-squared_TS / width) for width in _WIDTHS]).sum(0)
