"""Which prompt column is which part of the picture, tested with the real processors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.video_utils import VideoMetadata

from sf.attention.visual_tokens import locate, visual_mask
from sf.config import Vision
from sf.data.vision import encode
from sf.errors import DataError
from sf.models.tiny import build_processor

SIDE = 28
VISION = Vision(
    image_min_pixels=SIDE * SIDE,
    image_max_pixels=64 * SIDE * SIDE,
    video_min_pixels=SIDE * SIDE,
    video_max_pixels=64 * SIDE * SIDE,
    video_max_frames=8,
    video_fps=1.0,
)
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def processor(request):
    return build_processor(request.param, ["What colour is the square?"])


@pytest.fixture(scope="module")
def config(processor):
    """The part of a model's configuration that `locate` reads."""
    return SimpleNamespace(
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_config=SimpleNamespace(spatial_merge_size=processor.image_processor.merge_size),
    )


def turn(kind: str, pixels: np.ndarray, text: str) -> list[dict]:
    """A conversation about pixels [H, W, 3] or [T, H, W, 3]."""
    if kind == "image":
        part = {"type": "image", "image": PIL.Image.fromarray(pixels)}
    else:
        count = len(pixels)
        facts = VideoMetadata(total_num_frames=count, fps=1.0, frames_indices=list(range(count)))
        part = {"type": "video", "video": (pixels, facts)}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def canvas(kind: str, shape: tuple[int, int, int]) -> np.ndarray:
    """A black picture or clip that fills a grid of cells."""
    time, rows, cols = shape
    size = (rows * SIDE, cols * SIDE, 3)
    return np.zeros(size if kind == "image" else (2 * time, *size), dtype=np.uint8)


def painted(kind: str, shape: tuple[int, int, int], cell: tuple[int, int, int]) -> np.ndarray:
    """The same with one white cell, in the first frame of its time step."""
    pixels = canvas(kind, shape)
    time, row, col = cell
    frame = pixels if kind == "image" else pixels[2 * time]
    frame[row * SIDE : (row + 1) * SIDE, col * SIDE : (col + 1) * SIDE] = 255
    return pixels


CASES = [("image", (1, 4, 5), (0, 1, 3)), ("image", (1, 2, 7), (0, 1, 6))] + [
    ("video", (3, 2, 5), cell) for cell in ((0, 0, 0), (1, 1, 2), (2, 0, 4))
]


@pytest.mark.parametrize(("kind", "shape", "cell"), CASES)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_cell_is_the_token_whose_patches_its_pixels_change(
    processor, config, kind, shape, cell, padding
):
    other = turn(kind, canvas(kind, (1, 1, 2)), "What colour is the square? " * 9)
    black = encode(processor, [other, turn(kind, canvas(kind, shape), "What?")], VISION)
    white = encode(processor, [other, turn(kind, painted(kind, shape, cell), "What?")], VISION)
    changed = (black[PIXELS[kind]] != white[PIXELS[kind]]).any(-1).nonzero().flatten() // 4
    (token,) = changed.unique().tolist()
    ids = white["input_ids"]
    assert not white["attention_mask"][1, 0]  # the row that is looked at is padded
    if padding == "right":
        length = int(white["attention_mask"][1].sum())
        ids = torch.stack([ids[0], ids[1].roll(length)])
    first, second = locate({**white, "input_ids": ids}, config)
    assert (first.row, second.row) == (0, 1)
    assert second.shape == shape
    placeholder = config.image_token_id if kind == "image" else config.video_token_id
    places = torch.cat([(ids[0] == placeholder).nonzero(), (ids[1] == placeholder).nonzero()])
    assert second.column(*cell) == int(places[token])
    kept = torch.zeros(2, *ids.shape, dtype=torch.bool)
    kept[1, 1, int(places[token])] = True
    cells = second.cells(list(kept))
    assert cells.shape == (2, *shape)
    assert cells.nonzero().tolist() == [[1, *cell]]
    assert not first.cells(list(kept)).any()


def test_media_of_one_prompt_are_told_apart(processor, config):
    """Two images and a video in one row."""
    small, large = canvas("image", (1, 1, 2)), canvas("image", (1, 3, 2))
    content = turn("image", small, "and")[0]["content"] + turn("image", large, "and")[0]["content"]
    content += turn("video", canvas("video", (2, 2, 2)), "What?")[0]["content"]
    inputs = encode(processor, [[{"role": "user", "content": content}]], VISION)
    spans = locate(inputs, config)
    assert [(span.kind, span.shape) for span in spans] == [
        ("image", (1, 1, 2)),
        ("image", (1, 3, 2)),
        ("video", (2, 2, 2)),
    ]
    columns = torch.cat([span.columns for span in spans])
    assert columns.tolist() == sorted(set(columns.tolist()))
    mask = visual_mask(spans, tuple(inputs["input_ids"].shape))
    assert torch.equal(mask, inputs["mm_token_type_ids"] > 0)


def test_grids_that_do_not_fit_are_refused(processor, config):
    picture = turn("image", canvas("image", (1, 2, 2)), "What?")
    inputs = encode(processor, [picture, picture], VISION)
    with pytest.raises(DataError, match="need 4"):
        locate({**inputs, "image_grid_thw": inputs["image_grid_thw"][:1]}, config)
    with pytest.raises(DataError, match=r"rows \[0, 1\]"):
        locate({**inputs, "image_grid_thw": torch.tensor([[1, 2, 4], [1, 4, 6]])}, config)
