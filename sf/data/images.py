"""The image loader: any file or PIL image as upright 8-bit sRGB on white.

Pillow's own `convert("RGB")` clips 16-bit and floating-point gray, drops a transparent colour key
and ignores colour profiles; a damaged EXIF block can raise any exception.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sf.data.media import open_media
from sf.errors import DataError

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageCms

__all__ = [
    "MAX_IMAGE_PIXELS",
    "as_rgb",
    "decode_image",
    "load_image",
    "load_image_and_format",
    "load_rgb",
    "side_by_side",
]

MAX_IMAGE_PIXELS = 178_956_970  # PIL's bomb limit, twice its warning limit
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # decoded without other programs
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # TIFF tags
_SAME_COLOUR = 2  # levels of 255 within which a profile counts as sRGB
# Pillow's exceptions on damaged files, besides its own classes.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    struct.error,
    SyntaxError,
    TypeError,
    ValueError,
)


def _refuse(name: str, rule: str) -> DataError:
    return DataError("image", name, rule, "fetch the file again or leave it out")


def load_image(path: Path | str) -> PIL.Image.Image:
    """An image file as upright 8-bit sRGB, transparent parts on white.

    Args:
        path: of the file (or an archive member). Only the first frame of an animation is used.

    Raises:
        DataError: the file is missing, empty, truncated, not an image or a decompression bomb, or
            has gray values of unknown scale.
    """
    return load_image_and_format(path)[0]


def load_image_and_format(path: Path | str) -> tuple[PIL.Image.Image, str]:
    """See `load_image`; also the file's format in lower case ("png", "jpeg", ...)."""
    with open_media(path) as stream:
        return decode_image(stream, str(path))


def decode_image(stream: IO[bytes], name: str) -> tuple[PIL.Image.Image, str]:
    """`load_image_and_format` for an open file.

    Args:
        stream: seekable.
        name: for the message.
    """
    import PIL.Image

    try:
        image = PIL.Image.open(stream, formats=IMAGE_FORMATS)
        if image.width * image.height > MAX_IMAGE_PIXELS:
            rule = f"{image.width}x{image.height} pixels are a decompression bomb"
            raise _refuse(name, rule)
        return as_rgb(image, name), (image.format or "").lower()
    except PIL.Image.DecompressionBombError as error:
        raise _refuse(name, f"it is a decompression bomb: {error}") from error
    except DataError:
        raise
    except PIL.UnidentifiedImageError as error:
        rule = "it is damaged, or its image format is not supported"
        raise _refuse(name, rule) from error
    except _DAMAGE as error:
        raise _refuse(name, f"it cannot be decoded: {error}") from error


def load_rgb(part: dict[str, Any]) -> PIL.Image.Image:
    """The RGB picture of an image part: its "image", or the file at its "path"."""
    return as_rgb(part["image"]) if "image" in part else load_image(part["path"])


def as_rgb(image: PIL.Image.Image, name: str = "an image in memory") -> PIL.Image.Image:
    """A PIL image of any mode as upright 8-bit sRGB, transparent parts on white.

    Args:
        image: loaded or not yet loaded.
        name: for the message.

    Raises:
        DataError: it cannot be decoded, or has gray values of unknown scale.
    """
    import PIL.Image
    import PIL.ImageFile

    PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False  # importing lmms-eval sets it
    raw_mode = _raw_mode(image)
    try:
        image.load()
    except _DAMAGE as error:
        raise _refuse(name, f"it cannot be decoded: {error}") from error
    key = image.info.get("transparency")
    keyed = isinstance(key, int | tuple) and image.mode in ("1", "L", "RGB", "I;16", "I")
    hidden = _keyed(image, key, raw_mode) if keyed else None
    if image.mode.startswith(("I", "F")):
        opaque = PIL.Image.fromarray(_eight_bits(image, name)).convert("RGB")
    elif hidden is None and _has_alpha(image):
        image_rgba = image.convert("RGBA")
        opaque = _srgb(image_rgba.convert("RGB"), image.info.get("icc_profile"))
        white = PIL.Image.new("RGB", image.size, "white")
        opaque = PIL.Image.composite(opaque, white, image_rgba.getchannel("A"))
    else:
        opaque = _srgb(image, image.info.get("icc_profile"))
    if hidden is not None:
        white = PIL.Image.new("RGB", image.size, "white")
        opaque = PIL.Image.composite(white, opaque, PIL.Image.fromarray(hidden))
    turn = _turn(image)
    return opaque if turn is None else opaque.transpose(turn)


def _raw_mode(image: PIL.Image.Image) -> str:
    """The file's pixel format, for example "L;4"; known only before the image is loaded."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile and len(tile[0]) > 3 else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _has_alpha(image: PIL.Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _keyed(image: PIL.Image.Image, key: Any, raw_mode: str) -> np.ndarray:
    """bool [H, W]: pixels of the transparent colour, which the file states in its bit depth.

    Pillow keeps only the high bytes of 48-bit colour, so neighbours of the key are transparent too.
    """
    pixels = np.asarray(image)
    factor = {"1": 1, "L;1": 255, "L;2": 85, "L;4": 17}.get(raw_mode, 1)
    wanted = np.asarray(key) * factor
    if raw_mode.startswith("RGB;16"):
        wanted = wanted >> 8
    same = pixels == wanted
    return same.all(axis=-1) if same.ndim == 3 else same


def _eight_bits(image: PIL.Image.Image, name: str) -> np.ndarray:
    """Gray of more than 8 bits as uint8 [H, W].

    16-bit gray is scaled by its full range. Wider integers and floats state no range, so the
    smallest of 1 (floats), 255, 65535 and 2**32 - 1 that covers the values is used.
    """
    tags = getattr(image, "tag_v2", {})
    with np.errstate(invalid="ignore"):  # signalling NaNs, rejected below
        values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS, (16,))[0]
        white = float(2**bits - 1) if 8 < bits < 16 else 65535.0
    else:
        scales = (1.0, 255.0, 65535.0, 2.0**32 - 1)[image.mode != "F" :]
        white = next((scale for scale in scales if low >= 0 and high <= scale), 0.0)
    if not white:  # also for NaN
        raise _refuse(name, f"gray values from {low:g} to {high:g} have no known scale")
    scaled = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)
    return 255 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled


def _turn(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """The transposition that makes the image upright by its EXIF block; None if it is damaged."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE:
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation if isinstance(orientation, int) else 1)


def _srgb(image: PIL.Image.Image, profile: Any) -> PIL.Image.Image:
    """An image without transparency as RGB, converted to sRGB if it has another profile."""
    if image.mode == "LAB":
        profile = b"LAB"
    elif image.mode in ("P", "1", "YCbCr", "RGBX", "HSV"):
        image = image.convert("RGB")
    if isinstance(profile, bytes) and profile:
        transform = _transform(profile, image.mode)
        if transform is not None:
            converted = transform.apply(image)
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> PIL.ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None for sRGB itself, a profile of another mode or a damaged one."""
    import PIL.Image
    from PIL import ImageCms

    try:
        if profile == b"LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(source, target, mode, "RGB", intent)
        if mode not in ("RGB", "L"):
            return transform
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        steps = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
        sample = PIL.Image.fromarray(steps if mode == "RGB" else steps[..., 0].copy())
        before = np.asarray(sample.convert("RGB")).astype(int)
        after = np.asarray(transform.apply(sample)).astype(int)
        return None if np.abs(before - after).max() <= _SAME_COLOUR else transform
    except (ImageCms.PyCMSError, *_DAMAGE):
        return None


def side_by_side(pictures: Sequence[PIL.Image.Image], gap: int = 0) -> PIL.Image.Image:
    """Pictures in a row on white, aligned at the top, `gap` pixels apart."""
    import PIL.Image

    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    strip = PIL.Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + gap
    return strip
