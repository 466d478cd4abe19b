"""The positions of a prompt's visual tokens: prompt columns and cells of the media.

A cell is what one visual token sees: spatial_merge_size x spatial_merge_size patches of an image,
over two neighbouring frames of a video. Placeholders follow each other row by row, time step by
time step, in every model of the Qwen2-VL line.

LLaVA-OneVision and LLaVA-NeXT-Video see a whole image first, then (images only) the same image
again in tiles of higher resolution, with a token at the end of each line. The cells are those of
the whole image, or of each frame; tiles and line ends are visual tokens without a cell. In the
videos of LLaVA-Video each row of a frame has a line end (`sf.attention.video_form`).

Shape suffixes: B rows of the batch, L prompt columns, J layers; T time steps, H rows and W columns
of cells; M media.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sf.attention.video_form import video_form
from sf.errors import DataError, UnsupportedModelError

__all__ = ["VisualSpan", "locate", "placeholder_ids", "visual_mask"]

_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")

_LLAVA = ("llava_onevision", "llava_next_video")


@dataclass(frozen=True)
class VisualSpan:
    """The tokens of one image or one video.

    Attributes:
        kind: "image" or "video".
        row: row of the batch.
        shape: (T, H, W) in cells; T is 1 for an image.
        columns: int64 (T * H * W,), the prompt column of each cell, time first, then row by row.
        others: int64 (N,), the columns of further tokens of this medium, which have no cell.
    """

    kind: Literal["image", "video"]
    row: int
    shape: tuple[int, int, int]
    columns: Tensor
    others: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def column(self, time: int, row: int, col: int) -> int:
        """The prompt column of a cell."""
        return int(self.columns.view(self.shape)[time, row, col])

    def cells(self, kept: Sequence[Tensor]) -> Tensor:
        """The cells that each layer kept.

        Args:
            kept: `Trace.kept`, per layer bool (B, L).

        Returns:
            bool (J, T, H, W) on the CPU.
        """
        layers = [mask[self.row].cpu()[self.columns] for mask in kept]
        return torch.stack(layers).view(len(layers), *self.shape)


def placeholder_ids(model: Any) -> Tensor:
    """int64 (N,), the token ids that stand for visual tokens in a prompt.

    Args:
        model: a transformers model, without PEFT's wrapper.

    Raises:
        UnsupportedModelError: the model's configuration names no image or video token.
    """
    tokens = {getattr(model.config, name, None) for name in _NAMES} - {None}
    if not tokens:
        rule = "its configuration names no image or video token"
        raise UnsupportedModelError("model", type(model).__name__, rule)
    return torch.tensor(sorted(tokens))


def locate(inputs: Mapping[str, Any], config: Any) -> list[VisualSpan]:
    """The images and videos of a batch: images first, each kind in the order of the prompts.

    Args:
        inputs: `input_ids` (B, L), padded on either side, with `image_grid_thw` and
            `video_grid_thw` (M, 3) in patches where there are such media; for LLaVA with
            `pixel_values_videos` [M, frames, ...] where there are videos.
        config: of the model: `image_token_id`, `video_token_id` and the vision tower's
            `spatial_merge_size`; for LLaVA its `image_size` and `patch_size`.

    Raises:
        DataError: grids and placeholders do not fit together.
    """
    ids = inputs["input_ids"].cpu()
    if getattr(config, "model_type", "") in _LLAVA:
        return _llava_spans("image", ids, inputs, config) + _llava_spans(
            "video", ids, inputs, config
        )
    merge = int(config.vision_config.spatial_merge_size)
    spans = _spans("image", ids == config.image_token_id, inputs.get("image_grid_thw"), merge)
    return spans + _spans(
        "video", ids == config.video_token_id, inputs.get("video_grid_thw"), merge
    )


def _spans(
    kind: Literal["image", "video"], here_BL: Tensor, grids_M3: Tensor | None, merge: int
) -> list[VisualSpan]:
    places = here_BL.nonzero()  # row by row, each row from the left
    shapes = (
        [] if grids_M3 is None else [(t, h // merge, w // merge) for t, h, w in grids_M3.tolist()]
    )
    needed = sum(t * h * w for t, h, w in shapes)
    if needed != len(places):
        raise DataError(
            f"{kind} placeholders",
            len(places),
            f"the {kind} grids {shapes} (time, rows, columns) need {needed}",
            "encode the prompt and its media together",
        )
    spans, at = [], 0
    for shape in shapes:
        cells = places[at : at + shape[0] * shape[1] * shape[2]]
        at += len(cells)
        rows = cells[:, 0].unique().tolist()
        if len(rows) != 1:
            raise DataError(
                f"{kind} placeholders",
                None,
                f"those of one {kind} of {shape} cells lie in the rows {rows} of the batch",
                "encode the prompt and its media together",
            )
        spans.append(VisualSpan(kind, rows[0], shape, cells[:, 1]))
    return spans


def _llava_spans(
    kind: Literal["image", "video"], ids_BL: Tensor, inputs: Mapping[str, Any], config: Any
) -> list[VisualSpan]:
    """A medium's tokens are one run of placeholders.

    Its cells come first in it, or each line of cells is followed by a line end.
    """
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    token = config.image_token_id if kind == "image" else config.video_token_id
    form = video_form(config)
    shape, line_ends = (1, side, side), 0
    if kind == "video" and "pixel_values_videos" in inputs:
        pooled = side // 2 if config.model_type == "llava_next_video" else form.pooled(side)
        shape = (int(inputs["pixel_values_videos"].shape[1]), pooled, pooled)
        line_ends = form.num_lines(shape[0], side)
    cells = shape[0] * shape[1] * shape[2]
    count = cells + line_ends
    spans = []
    for row, is_token in enumerate(ids_BL == token):
        columns = is_token.nonzero()[:, 0]
        breaks = (columns.diff() > 1).nonzero()[:, 0] + 1
        for run in columns.tensor_split(breaks):
            if len(run) == 0:
                continue
            if len(run) < count:
                raise DataError(
                    f"{kind} placeholders",
                    len(run),
                    f"{shape} cells (time, rows, columns) need {count}",
                    "encode the prompt and its media together",
                )
            lines, rest = run[:count].view(max(line_ends, 1), -1), run[count:]
            if line_ends:
                lines, rest = lines[:, :-1], torch.cat((lines[:, -1], rest))
            spans.append(VisualSpan(kind, row, shape, lines.flatten(), rest))
    return spans


def visual_mask(spans: Sequence[VisualSpan], shape: tuple[int, int]) -> Tensor:
    """bool (B, L), True on the visual tokens of the prompts."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for span in spans:
        mask[span.row, span.columns] = True
        mask[span.row, span.others] = True
    return mask
