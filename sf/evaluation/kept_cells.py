"""The cells of a prompt's images and videos that the layers kept, as short text for a record.

Shape suffixes: G groups of layers, B rows of the batch, L columns; T time steps, H rows and W
columns of cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sf.attention import Trace
from sf.attention.trace import PairTrace
from sf.attention.visual_tokens import locate
from sf.evaluation.layer_groups import MAJORITY, keep_rates, layer_groups
from sf.evaluation.packed_cells import packed

__all__ = ["kept_cells"]


def kept_cells(trace: Trace, inputs: Mapping[str, Any], config: Any) -> list[tuple[str, ...]]:
    """The cells that each group of `layer_groups` kept of every image and video, row by row.

    A group keeps a cell that the share `MAJORITY` of its layers keeps.

    Args:
        trace: of the prefill.
        inputs: of that prefill, as `sf.attention.visual_tokens.locate` takes them.
        config: of the model.

    Returns:
        For each row of the batch a text of each medium (`packed`), in the order of the prompt.
        Nothing for a row that kept every token, and under a method whose queries each read other
        tokens.

    Raises:
        DataError: grids and placeholders do not fit together.
    """
    texts: list[tuple[str, ...]] = [()] * len(inputs["input_ids"])
    if isinstance(trace, PairTrace) or trace.valid is None:
        return texts
    valid_BL = trace.valid.cpu()
    kept = [mask_BL.cpu() for mask_BL in trace.kept]
    sparse_B = torch.stack([(mask_BL != valid_BL).any(1) for mask_BL in kept]).any(0).tolist()
    if not any(sparse_B):
        return texts
    groups = layer_groups(len(kept))
    for span in sorted(locate(inputs, config), key=lambda span: int(span.columns[0])):
        if sparse_B[span.row]:
            rates_GTHW = keep_rates(span.cells(kept).numpy(), groups)
            texts[span.row] = (*texts[span.row], packed(rates_GTHW >= MAJORITY))
    return texts
