"""A model's peaks from those of shallower ones.

The layers of a decoder are alike, so the memory at any moment of a step is linear in their number.
So is a stage's peak, as long as it is the same moment of the stage at every depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from sf.rehearsal.live_memory import Peaks
from sf.rehearsal.shapes import ModelShape

__all__ = ["at_depth", "by_depth"]

DEPTHS = (2, 4)


def at_depth(shape: ModelShape, layers: int) -> ModelShape:
    """The shape with another number of decoder layers."""
    config = deepcopy(shape.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1] * layers
    return replace(shape, config=config, origin=f"{shape.origin}, {layers} layers")


def by_depth(peaks_of: Callable[[ModelShape], Peaks], shape: ModelShape) -> Peaks:
    """Peaks of the whole model, extrapolated from `DEPTHS` layers if it has more.

    Args:
        peaks_of: runs a model.
        shape: the whole model.
    """
    layers = shape.config.get_text_config().num_hidden_layers
    if layers <= max(DEPTHS):
        return peaks_of(shape)
    low, high = (peaks_of(at_depth(shape, depth)) for depth in DEPTHS)
    steps = (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    return {
        stage: Counter(
            {
                name: low[stage][name] + round(steps * (high[stage][name] - low[stage][name]))
                for name in {*low[stage], *high[stage]}
            }
        )
        for stage in low
    }
