"""FastV (arXiv 2403.06764): after layer K only the visual tokens that the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sf.baselines.visual import VisualColumns, VisualPolicy, VisualShare
from sf.errors import ConfigError
from sf.selection import Probes, Scores

__all__ = ["FastV"]


@dataclass(frozen=True)
class FastV(VisualShare):
    """Layers 1..K are dense. Then the visual tokens are ranked by the attention that the last
    prompt token gives them in layer K, averaged over heads (section 4.1: phi_attn), and the lowest
    R = 1 - ratio are dropped from all layers after K.

    A dropped token takes part in no later attention, so no kept token depends on it. This is
    equivalent to removing it from the sequence, as the paper does, but its MLP still runs here:
    accuracy, token ratio and KV are those of the method, latency is not.

    Attributes:
        after_layer: K, counted from 1.
    """

    name: ClassVar[str] = "fastv"
    text: ClassVar[str] = "after layer K = 2, the visual tokens that the last token attends to most"
    paper: ClassVar[str] = "2403.06764 section 4.1"
    counts: ClassVar[str] = "tokens of a layer, the K dense layers as 1; dropped ones leave its KV"

    after_layer: int = 2

    def policy(self, model: Any, visual: VisualColumns) -> VisualPolicy:
        layers = int(model.config.get_text_config().num_hidden_layers)
        if not 1 <= self.after_layer < layers:
            rule = f"the model has {layers} layers, of which at least one must follow"
            raise ConfigError("after_layer", self.after_layer, rule)
        return _Ranked(self.ratio, visual, after_layer=self.after_layer)


@dataclass(frozen=True)
class _Ranked(VisualPolicy):
    """Chooses in layer K (index K - 1), which is dense itself, for the layers after it."""

    after_layer: int = field(kw_only=True)
    # The last prompt token alone is asked.
    probes: Probes = field(default=Probes(recent=1, spread=0), kw_only=True)

    def scores_at(self, layer: int) -> bool:
        return layer == self.after_layer - 1

    def keep(self, scores: Scores, layer: int) -> Tensor:
        if layer >= self.after_layer:
            return self.chosen["kept"].to(scores.valid.device)
        if layer == self.after_layer - 1:
            self.chosen["kept"] = self._rank(scores)
        return scores.valid

    def _rank(self, scores: Scores) -> Tensor:
        visual = self.visual.prompt(scores.valid)
        order = scores.mass.masked_fill(~visual, -1).argsort(dim=-1, descending=True, stable=True)
        first = torch.arange(order.shape[1], device=order.device) < self.num_kept(visual)[:, None]
        best = torch.zeros_like(visual).scatter_(1, order, first)
        return scores.valid & (best | ~visual)
