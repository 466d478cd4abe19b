"""Short text for the cells of an image or video that each group of layers kept.

Shape suffixes: G groups of layers; T time steps, H rows and W columns of cells.
"""

from __future__ import annotations

import base64
import math

import numpy as np
from numpy.typing import NDArray

from sf.errors import DataError

__all__ = ["packed", "unpacked"]


def packed(cells_GTHW: NDArray[np.bool_]) -> str:
    """ "TxHxW:BITS": the bits of all cells, group by group, eight per byte, first bit highest."""
    shape = "x".join(str(length) for length in cells_GTHW.shape[1:])
    return f"{shape}:{base64.b64encode(np.packbits(cells_GTHW).tobytes()).decode()}"


def unpacked(text: str, groups: int) -> NDArray[np.bool_]:
    """The cells (G, T, H, W) of `packed`.

    Args:
        text: from `packed`.
        groups: G, which the text does not contain.

    Raises:
        DataError: the text does not contain the cells of that many groups.
    """
    lengths, _, bits = text.partition(":")
    try:
        shape = (groups, *(int(length) for length in lengths.split("x")))
        content = np.frombuffer(base64.b64decode(bits, validate=True), dtype=np.uint8)
    except ValueError:
        shape, content = (groups,), np.empty(0, dtype=np.uint8)
    count = math.prod(shape)
    if len(shape) != 4 or len(content) != -(-count // 8):
        rule = f"holds no cells of {groups} groups of layers"
        raise DataError("kept_cells", text, rule, "evaluate the row again")
    return np.unpackbits(content, count=count).astype(bool).reshape(shape)
