"""FastV (arXiv 2403.06764): after layer K only the visual tokens that the last token looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sf.attention import Trace, sparsify
from sf.baselines.method import Hyperparameter, Method
from sf.baselines.visual import VisualColumns, watching_visual
from sf.errors import ConfigError
from sf.selection import Policy, Probes, Scores

__all__ = ["FastV"]


@dataclass(frozen=True)
class FastV(Method):
    """Layers 1..K are dense. Then the visual tokens are ranked by the attention that the last
    prompt token gives them in layer K, averaged over heads (section 4.1: phi_attn), and the lowest
    R = 1 - ratio are dropped from all layers after K. All text stays; positions stay.

    A dropped token takes part in no later attention, so no kept token's result depends on it: the
    same as removing it from the sequence, as the paper does. Its MLP still runs here: accuracy,
    token ratio and KV are the method's, latency is not.

    Attributes:
        ratio: share of the prompt's visual tokens that is kept, rounded down; the paper's 1 - R.
        after_layer: K, counted from 1.
    """

    name: ClassVar[str] = "fastv"
    text: ClassVar[str] = "after layer K = 2, the visual tokens that the last token attends to most"
    paper: ClassVar[str] = "2403.06764 section 4.1"
    decodes_densely: ClassVar[bool] = True
    counts: ClassVar[str] = "tokens of a layer, the K dense layers as 1; dropped ones leave its KV"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 0.5, dense=1.0)

    ratio: float = 0.5
    after_layer: int = 2

    @contextmanager
    def apply(self, model: Any) -> Iterator[Trace]:
        layers = int(model.config.get_text_config().num_hidden_layers)
        if not 1 <= self.after_layer < layers:
            rule = f"the model has {layers} layers, of which at least one must follow"
            raise ConfigError("after_layer", self.after_layer, rule)
        with watching_visual(model) as visual:
            policy = _Ranked(self.ratio, self.after_layer, visual)
            with sparsify(model, policy) as trace:
                yield trace


@dataclass(frozen=True)
class _Ranked(Policy):
    """Chooses in layer K (index K - 1), which is dense itself, for the layers after it."""

    ratio: float
    after_layer: int
    visual: VisualColumns
    chosen: dict[str, Tensor] = field(default_factory=dict)
    # The last prompt token alone is asked.
    probes: Probes = field(default=Probes(recent=1, spread=0), kw_only=True)

    @property
    def dense(self) -> bool:
        return self.ratio == 1

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
        # 0.3 * 10 is a little below 3 in float64; that must not cost a token.
        count = (self.ratio * visual.sum(-1).double() + 1e-9).floor()
        order = scores.mass.masked_fill(~visual, -1).argsort(dim=-1, descending=True, stable=True)
        first = torch.arange(order.shape[1], device=order.device) < count[:, None]
        best = torch.zeros_like(visual).scatter_(1, order, first)
        return scores.valid & (best | ~visual)
