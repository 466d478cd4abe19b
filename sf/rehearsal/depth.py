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

__all__ = ["at_depth", "by_depth", "extrapolated", "few_blocks"]

DEPTHS = (2, 4)
_BLOCKS = 2


def at_depth(shape: ModelShape, layers: int) -> ModelShape:
    """The shape with another number of decoder layers."""
    config = deepcopy(shape.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1] * layers
    return replace(shape, config=config, origin=f"{shape.origin}, {layers} layers")


def by_depth(
    peaks_of: Callable[[ModelShape], Peaks],
    shape: ModelShape,
    depths: tuple[int, int] = DEPTHS,
) -> Peaks:
    """Peaks of the whole model, extrapolated from those of `depths` layers if it has more.

    Args:
        peaks_of: runs a model.
        shape: the whole model.
        depths: numbers of layers to run.
    """
    layers = shape.config.get_text_config().num_hidden_layers
    if layers <= max(depths):
        return peaks_of(shape)
    low, high = (peaks_of(at_depth(shape, depth)) for depth in depths)
    return extrapolated(low, high, (layers - depths[0]) / (depths[1] - depths[0]))


def extrapolated(low: Peaks, high: Peaks, steps: float) -> Peaks:
    """The peaks that lie `steps` times the way from `low` to `high` beyond `low`."""
    return {
        stage: Counter(
            {
                name: low[stage][name] + round(steps * (high[stage][name] - low[stage][name]))
                for name in {*low[stage], *high[stage]}
            }
        )
        for stage in low
    }


def few_blocks(shape: ModelShape) -> ModelShape:
    """The shape with a vision tower of two blocks, both of full attention.

    Without gradients a tower of any depth has the same activations, and blocks with attention in
    windows have no more.
    """
    config = deepcopy(shape.config)
    tower = config.vision_config
    if tower.depth <= _BLOCKS:
        return shape
    tower.depth = _BLOCKS
    if hasattr(tower, "fullatt_block_indexes"):
        tower.fullatt_block_indexes = list(range(_BLOCKS))
    return replace(shape, config=config, origin=f"{shape.origin}, {_BLOCKS} tower blocks")
