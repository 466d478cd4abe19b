"""Images of every mode, depth, colour space and damage give the colours that were written."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from image_forms import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    LINEAR_GRAY_PROFILE,
    QUARTERS,
    RED,
    ROTATED_PROFILE,
    WHITE,
    corners,
    pillow,
    png,
    quarters,
    saved,
    tiff,
)
from PIL import ImageCms, ImageColor

from sf.data.images import as_rgb, load_image, load_rgb, side_by_side
from sf.errors import DataError


def grays(*levels: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((level, level, level) for level in levels)


def trns(*values: int) -> tuple[bytes, bytes]:
    return b"tRNS", np.array(values, dtype=">u2").tobytes()


PALETTE = (b"PLTE", bytes(sum(QUARTERS, ())))
RAMP = grays(0, 85, 170, 255)
WIDE = [[value * 257 for value in colour] for colour in QUARTERS]
SHADES = [0, 85, 170, 255]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ROTATED = ((32, 224, 32), (32, 32, 192), (224, 32, 32), GRAY)


def palette(depth: int, *chunks: tuple[bytes, bytes]) -> bytes:
    return png([0, 1, 2, 3], depth, 3, PALETTE, *chunks)


PNGS = {
    "gray 1": (png([0, 1, 1, 0], 1, 0), (BLACK, WHITE, WHITE, BLACK)),
    "gray 2": (png([0, 1, 2, 3], 2, 0), RAMP),
    "gray 4": (png([0, 5, 10, 15], 4, 0), RAMP),
    "gray 8": (png(SHADES, 8, 0), RAMP),
    "gray 16": (png([0, 21845, 43690, 65535], 16, 0), RAMP),
    "gray 16 dark": (png([0, 257, 514, 2570], 16, 0), grays(0, 1, 2, 10)),
    "gray 1 key": (png([0, 1, 1, 0], 1, 0, trns(0)), (WHITE, WHITE, WHITE, WHITE)),
    "gray 2 key": (png([0, 1, 2, 3], 2, 0, trns(1)), grays(0, 255, 170, 255)),
    "gray 4 key": (png([0, 5, 10, 15], 4, 0, trns(5)), grays(0, 255, 170, 255)),
    "gray 8 key": (png(SHADES, 8, 0, trns(85)), grays(0, 255, 170, 255)),
    "gray 16 key": (png([0, 21845, 43690, 65535], 16, 0, trns(21845)), grays(0, 255, 170, 255)),
    "gray 16 other key": (png([0, 21845, 43690, 65535], 16, 0, trns(21846)), RAMP),
    "rgb 8": (png(QUARTERS, 8, 2), QUARTERS),
    "rgb 16": (png(WIDE, 16, 2), QUARTERS),
    "rgb 8 key": (png(QUARTERS, 8, 2, trns(*RED)), (WHITE, GREEN, BLUE, GRAY)),
    "rgb 8 no such key": (png(QUARTERS, 8, 2, trns(1, 2, 3)), QUARTERS),
    "rgb 16 key": (png(WIDE, 16, 2, trns(*WIDE[1])), (RED, WHITE, BLUE, GRAY)),
    "palette 2": (palette(2), QUARTERS),
    "palette 4": (palette(4), QUARTERS),
    "palette 8": (palette(8), QUARTERS),
    "palette key": (palette(8, (b"tRNS", b"\xff\0")), (RED, WHITE, BLUE, GRAY)),
    "palette alpha": (palette(8, (b"tRNS", b"\0\xff\0\xff")), (WHITE, GREEN, WHITE, GRAY)),
    "gray alpha 8": (png([[0, 255], [0, 0], [9, 255], [9, 0]], 8, 4), grays(0, 255, 9, 255)),
    "gray alpha 16": (
        png([[0, 65535], [0, 0], [2570, 65535], [9, 0]], 16, 4),
        grays(0, 255, 10, 255),
    ),
    "gray half": (png([[0, 128], [255, 128], [0, 255], [0, 0]], 8, 4), grays(127, 255, 0, 255)),
    "rgba 8": (png([[*c, 255 * (c != RED)] for c in QUARTERS], 8, 6), (WHITE, GREEN, BLUE, GRAY)),
    "rgba 16": (
        png([[*(257 * v for v in c), 65535 * (c != RED)] for c in QUARTERS], 16, 6),
        (WHITE, GREEN, BLUE, GRAY),
    ),
    "exif 6": (
        png(
            QUARTERS,
            8,
            2,
            (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        ),
        (BLUE, RED, GRAY, GREEN),
    ),
    "exif cut": (png(QUARTERS, 8, 2, (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12")), QUARTERS),
    "exif of nothing": (png(QUARTERS, 8, 2, (b"eXIf", b"no exif")), QUARTERS),
    "exif empty": (png(QUARTERS, 8, 2, (b"eXIf", b"")), QUARTERS),
}


def deep(values: list[float], kind: object) -> np.ndarray:
    return quarters(values, kind)


U16 = [0, 21845, 43690, 65535]
TIFFS = {
    "16 little": (tiff(deep(U16, "u2"), 16, 1, 1), RAMP),
    "16 big": (tiff(deep(U16, "u2"), 16, 1, 1, ">"), RAMP),
    "16 white is zero": (tiff(deep(U16, "u2"), 16, 1, 0), RAMP[::-1]),
    "32 as 16": (tiff(deep(U16, "i4"), 32, 2, 1), RAMP),
    "32 as 8": (tiff(deep(SHADES, "i4"), 32, 2, 1), RAMP),
    "float of 1": (tiff(deep([0, 1 / 3, 2 / 3, 1], "f4"), 32, 3, 1), RAMP),
    "float of 255": (tiff(deep(SHADES, "f4"), 32, 3, 1), RAMP),
    "float of 65535": (tiff(deep(U16, "f4"), 32, 3, 1), RAMP),
    "float big": (tiff(deep([0, 1 / 3, 2 / 3, 1], "f4"), 32, 3, 1, ">"), RAMP),
}
LOSSY = 8
WRITTEN = {
    "jpeg": (pillow("RGB", "JPEG", quality=95, subsampling=0), QUARTERS, LOSSY),
    "jpeg progressive": (pillow("RGB", "JPEG", quality=95, progressive=True), QUARTERS, LOSSY),
    "jpeg cmyk": (pillow("CMYK", "JPEG", quality=95), QUARTERS, LOSSY),
    "jpeg gray": (pillow("L", "JPEG", quality=95), grays(89, 126, 54, 160), LOSSY),
    "mpo": (pillow("RGB", "MPO", quality=95, subsampling=0), QUARTERS, LOSSY),
    "webp": (pillow("RGB", "WEBP", quality=95), QUARTERS, 12),
    "webp lossless": (pillow("RGB", "WEBP", lossless=True), QUARTERS, 0),
    "gif": (pillow("P", "GIF"), QUARTERS, 32),
    "bmp": (pillow("RGB", "BMP"), QUARTERS, 0),
    "bmp palette": (pillow("P", "BMP"), QUARTERS, 32),
    "bmp gray": (pillow("L", "BMP"), grays(89, 126, 54, 160), 2),
    "tiff": (pillow("RGB", "TIFF"), QUARTERS, 0),
    "tiff lzw": (pillow("RGB", "TIFF", compression="tiff_lzw"), QUARTERS, 0),
    "tiff deflate": (pillow("RGB", "TIFF", compression="tiff_adobe_deflate"), QUARTERS, 0),
    "tiff cmyk": (pillow("CMYK", "TIFF"), QUARTERS, 0),
    "tiff ycbcr": (pillow("YCbCr", "TIFF"), QUARTERS, 3),
    "tiff palette": (pillow("P", "TIFF"), QUARTERS, 32),
    "profile png": (pillow("RGB", "PNG", icc_profile=ROTATED_PROFILE), ROTATED, 6),
    "profile jpeg": (
        pillow("RGB", "JPEG", quality=95, subsampling=0, icc_profile=ROTATED_PROFILE),
        ROTATED,
        LOSSY,
    ),
    "profile webp": (
        pillow("RGB", "WEBP", lossless=True, icc_profile=ROTATED_PROFILE),
        ROTATED,
        6,
    ),
    "profile tiff": (pillow("RGB", "TIFF", icc_profile=ROTATED_PROFILE), ROTATED, 6),
    "profile rgba": (pillow("RGBA", "PNG", icc_profile=ROTATED_PROFILE), ROTATED, 6),
    "profile srgb": (pillow("RGB", "PNG", icc_profile=SRGB), QUARTERS, 0),
    "profile cut": (pillow("RGB", "PNG", icc_profile=ROTATED_PROFILE[:150]), QUARTERS, 0),
    "profile of nothing": (pillow("RGB", "PNG", icc_profile=b"no profile"), QUARTERS, 0),
    "profile of another mode": (
        pillow("RGB", "PNG", icc_profile=LINEAR_GRAY_PROFILE),
        QUARTERS,
        0,
    ),
    "profile gray": (
        lambda: saved(
            PIL.Image.fromarray(quarters([0, 55, 128, 255])), "PNG", icc_profile=LINEAR_GRAY_PROFILE
        ),
        grays(0, 128, 188, 255),
        3,
    ),
}


def loaded(data: bytes, folder) -> list[tuple[int, ...]]:
    (folder / "image").write_bytes(data)
    image = load_image(folder / "image")
    assert image.mode == "RGB"
    return corners(image)


@pytest.mark.parametrize("form", PNGS)
def test_png(tmp_path, form):
    data, colours = PNGS[form]
    assert loaded(data, tmp_path) == list(colours)


@pytest.mark.parametrize("form", TIFFS)
def test_deep_tiff(tmp_path, form):
    data, colours = TIFFS[form]
    assert loaded(data, tmp_path) == list(colours)


@pytest.mark.parametrize("form", WRITTEN)
def test_formats_and_profiles(tmp_path, form):
    write, colours, most = WRITTEN[form]
    difference = np.array(loaded(write(), tmp_path)) - np.array(colours)
    assert np.abs(difference).max() <= most


def test_lab(tmp_path):
    lab = ImageCms.profileToProfile(
        PIL.Image.fromarray(quarters(QUARTERS)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert np.abs(np.array(loaded(saved(lab, "TIFF"), tmp_path)) - QUARTERS).max() <= 8


def turned(kind: str, orientation: object) -> bytes:
    image = PIL.Image.fromarray(quarters(QUARTERS))
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    return saved(image, kind, exif=exif, **options.get(kind, {}))


UPRIGHT = {
    1: (RED, GREEN, BLUE, GRAY),
    2: (GREEN, RED, GRAY, BLUE),
    3: (GRAY, BLUE, GREEN, RED),
    4: (BLUE, GRAY, RED, GREEN),
    5: (RED, BLUE, GREEN, GRAY),
    6: (BLUE, RED, GRAY, GREEN),
    7: (GRAY, GREEN, BLUE, RED),
    8: (GREEN, GRAY, RED, BLUE),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9, 300])
def test_exif_orientation(tmp_path, kind, orientation):
    image = loaded(turned(kind, orientation), tmp_path)
    assert np.abs(np.array(image) - UPRIGHT.get(orientation, QUARTERS)).max() <= LOSSY


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("cut", [1, 5, 9, 14, 20])
def test_damaged_exif_leaves_the_image_unturned(tmp_path, kind, cut):
    """Whatever the block contains from some byte on, the picture after it is intact."""
    data = turned(kind, 1)
    start = data.index(b"MM\0*") if b"MM\0*" in data else data.index(b"II*\0")
    damaged = data[: start + cut] + b"\xff" * (26 - cut) + data[start + 26 :]
    if kind == "PNG":
        damaged = png(QUARTERS, 8, 2, (b"eXIf", damaged[start : start + 26]))
    assert np.abs(np.array(loaded(damaged, tmp_path)) - QUARTERS).max() <= LOSSY


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, kind):
    first = PIL.Image.fromarray(quarters(QUARTERS))
    more = [PIL.Image.new("RGB", (16, 16), "black")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(first, kind, save_all=True, append_images=more, **options)
    assert np.abs(np.array(loaded(data, tmp_path)) - QUARTERS).max() <= 32


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_cut_file_is_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(PIL.Image.fromarray(noise), kind)
    (tmp_path / "a.img").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.img.*(decoded|damaged)"):
        load_image(tmp_path / "a.img")


@pytest.mark.parametrize("values", [[-1, 0, 1, 2], [0, 1, 2, 1e12], [0, np.nan, 1, 1]])
def test_gray_of_unknown_scale_is_refused(tmp_path, values):
    (tmp_path / "a.tif").write_bytes(tiff(deep(values, "f4"), 32, 3, 1))
    with pytest.raises(DataError, match=r"a\.tif.*no known scale"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("form", ["gray 16", "rgb 8 key", "exif 6", "exif cut", "rgba 8"])
def test_images_in_memory_go_the_same_way(tmp_path, form):
    """Benchmarks pass images that were opened and not yet read."""
    data, colours = PNGS[form]
    image = PIL.Image.open(io.BytesIO(data))
    assert corners(load_rgb({"image": image})) == list(colours)


def test_a_damaged_image_in_memory_is_one_clear_error():
    data = png(QUARTERS, 8, 2)
    with pytest.raises(DataError, match="cannot be decoded"):
        as_rgb(PIL.Image.open(io.BytesIO(data[:-30])))


def test_pictures_stand_side_by_side():
    red, blue = PIL.Image.new("RGB", (3, 4), "red"), PIL.Image.new("RGB", (2, 1), "blue")
    strip = side_by_side([red, blue], gap=2)
    assert strip.size == (7, 4)
    places = {(2, 3): "red", (3, 0): "white", (4, 3): "white", (5, 0): "blue", (5, 1): "white"}
    for place, colour in places.items():
        assert strip.getpixel(place) == ImageColor.getrgb(colour)
