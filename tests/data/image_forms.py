"""Images of every form, written byte by byte where Pillow cannot write them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image

SIDE = 16
RED, GREEN, BLUE, GRAY = (224, 32, 32), (32, 192, 32), (32, 32, 224), (160, 160, 160)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
QUARTERS = (RED, GREEN, BLUE, GRAY)  # upper left, upper right, lower left, lower right


def quarters(values: object, dtype: object = np.uint8) -> np.ndarray:
    """[16, 16] or [16, 16, C]: one value a quarter."""
    four = np.asarray(values, dtype=dtype)
    rows = four.reshape(2, 2, *four.shape[1:])
    return rows.repeat(SIDE // 2, axis=0).repeat(SIDE // 2, axis=1)


def corners(image: PIL.Image.Image) -> list[tuple[int, ...]]:
    """The colours of the quarters' centres."""
    x, y = image.width // 4, image.height // 4
    return [image.getpixel(place) for place in ((x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y))]


def png(values: object, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file from samples [16, 16, C] of `depth` bits."""
    samples = quarters(values, np.uint16)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in samples]
    else:
        bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits]
    header = struct.pack(">2I5B", SIDE, SIDE, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")):
        out += struct.pack(">I", len(body)) + name + body
        out += struct.pack(">I", zlib.crc32(name + body))
    return out


def tiff(samples: np.ndarray, bits: int, kind: int, photometric: int, order: str = "<") -> bytes:
    """An uncompressed gray TIFF file; `kind` is 1 unsigned, 2 signed, 3 floating point."""
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    entries = [
        (256, 4, SIDE),
        (257, 4, SIDE),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, SIDE),
        (279, 4, len(data)),
        (339, 3, kind),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    table = struct.pack(order + "H", len(entries))
    for tag, size, value in entries:
        table += struct.pack(order + "HHI", tag, size, 1)
        table += struct.pack(order + ("HH" if size == 3 else "I"), *([value, 0][: 4 - size + 1]))
    return head + data + table + struct.pack(order + "I", 0)


def saved(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    """What Pillow writes."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pillow(mode: str, kind: str, **options: object) -> Callable[[], bytes]:
    """The four colours in a mode, as Pillow writes them."""
    return lambda: saved(PIL.Image.fromarray(quarters(QUARTERS)).convert(mode), kind, **options)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2."""
    body, table = b"", struct.pack(">I", len(tags))
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    head = struct.pack(">I4xI4s4s4s", size, 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return head + bytes(128 - len(head)) + table + body


def _xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in (x, y, z)))


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + bytes(2)


def _text(name: bytes) -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + bytes(1 + 78)


_D50 = _xyz(0.9642, 1.0, 0.8249)
_NAMED = {b"desc": _text(b"test"), b"wtpt": _D50}
_PRIMARIES = [
    _xyz(0.4360, 0.2225, 0.0139),
    _xyz(0.3851, 0.7169, 0.0971),
    _xyz(0.1431, 0.0606, 0.7141),
]
# sRGB's primaries under other names: the file's red is green, its green blue, its blue red.
ROTATED_PROFILE = profile(
    b"RGB ",
    _NAMED
    | dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), _PRIMARIES[1:] + _PRIMARIES[:1], strict=True))
    | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(2.2)),
)
LINEAR_GRAY_PROFILE = profile(b"GRAY", _NAMED | {b"kTRC": _gamma(1.0)})
