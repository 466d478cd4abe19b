"""The orientation of a video.

Phones store frames in the sensor's orientation, with a display matrix that rotates them. Only
decoded frames carry the matrix, and decoding does not apply it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av
    import numpy as np

__all__ = ["Orientation", "orientation_of"]


@dataclass(frozen=True, slots=True)
class Orientation:
    """The transform that makes stored frames upright: swap the axes, then mirror.

    Attributes:
        swapped: rows become columns.
        mirror_x, mirror_y: reverse columns, reverse rows.
    """

    swapped: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the upright frame."""
        return (height, width) if self.swapped else (width, height)

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """[H, W, C] as stored -> [H, W, C] as shown, contiguous."""
        import numpy as np

        turned = frame.swapaxes(0, 1) if self.swapped else frame
        if self.mirror_y:
            turned = turned[::-1]
        if self.mirror_x:
            turned = turned[:, ::-1]
        return np.ascontiguousarray(turned)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The orientation given by a frame's display matrix, rounded to quarter turns.

    The matrix (ISO/IEC 14496-12, track header) maps x' = a x + c y, y' = b x + d y.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = struct.unpack_from("=5i", memoryview(matrix))  # type: ignore[arg-type]
    if abs(b) > abs(a):
        return Orientation(swapped=True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(mirror_x=a < 0, mirror_y=d < 0)
