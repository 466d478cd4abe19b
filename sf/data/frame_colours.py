"""Decoded frames as RGB, with the colour matrix and range that the file states.

PyAV alone converts every frame as limited-range BT.601. For a file that states nothing, FFmpeg
assumes the same: BT.601, limited range (full range for gray and for the JPEG formats). Primaries
and transfer curves are not converted: a BT.2020 or HDR frame keeps its own RGB space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sf.errors import DataError

if TYPE_CHECKING:
    import av
    import numpy as np

__all__ = ["matrix_of", "rgb"]

_LIMITED, _FULL = 1, 2  # AVColorRange
_BT709, _BT601 = 1, 5  # AVColorSpace, the same numbers as swscale's
_MATRICES = {
    0: _BT601,  # RGB: no matrix; for a YUV frame, treated as unspecified
    1: _BT709,
    2: _BT601,  # unspecified
    4: 4,  # FCC
    5: _BT601,  # BT.470 BG
    6: _BT601,  # SMPTE 170M
    7: 7,  # SMPTE 240M
    9: 9,  # BT.2020, non-constant luminance
}


def _is_gray(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith(("gray", "ya"))


def matrix_of(frame: av.VideoFrame) -> int | None:
    """swscale's number of the frame's colour matrix; None for RGB, which has none.

    Raises:
        DataError: a matrix that swscale does not know (YCgCo, ICtCp, ...).
    """
    if frame.format.is_rgb or frame.format.name.startswith(("pal8", "mono", "bayer", "xyz")):
        return None
    if _is_gray(frame):
        return _BT601
    matrix = _MATRICES.get(int(frame.colorspace))
    if matrix is None:
        rule = "this colour matrix (a code of ITU-T H.273) is not supported"
        raise DataError("matrix", int(frame.colorspace), rule, "convert the video to BT.709")
    return matrix


def rgb(frame: av.VideoFrame) -> np.ndarray:
    """A frame as uint8 [H, W, 3], alpha dropped.

    Raises:
        DataError: see `matrix_of`.
    """
    matrix = matrix_of(frame)
    if matrix is None:
        return frame.to_ndarray(format="rgb24")
    full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
    full = full or (_is_gray(frame) and frame.color_range != _LIMITED)
    # PyAV applies the source's matrix and range only if they differ from the destination's. An RGB
    # destination has no matrix, so any other value works.
    converted = frame.reformat(
        format="rgb24",
        src_colorspace=matrix,
        dst_colorspace=_BT709 if matrix == _BT601 else _BT601,
        src_color_range=_FULL if full else _LIMITED,
        dst_color_range=_FULL,
    )
    return converted.to_ndarray()
