"""Attention, keys and features of the vision towers of Qwen2-VL and Qwen2.5-VL.

Shape suffixes: P patches, N cells, U patches of a cell, C width, H heads, D head size, S patches of
one image or time step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from sf.attention.decoder_hooks import unwrapped
from sf.errors import UnsupportedModelError

__all__ = ["Seen", "watching_features", "watching_tower"]

# Scores (heads x queries x keys) that are made at once.
_SCORE_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Seen:
    """The input of the last block with full attention in one call of the tower.

    Attributes:
        query_HPD, key_HPD: after rotary positions, in the block's order. raw_PD: keys before them,
            mean over heads.
        places: int64 (N,), where in the block's order each cell lies; cells go image by image, time
            step by time step, row by row, as their tokens do in the prompt.
        sizes: cells of each image or time step.
        unit: U. scaling: of the block's logits.
    """

    query_HPD: Tensor
    key_HPD: Tensor
    raw_PD: Tensor
    places: Tensor
    sizes: list[int]
    unit: int
    scaling: float

    def received(self) -> Tensor:
        """(N,) attention that a cell's patches receive, mean over heads, queries and patches."""
        patches = [size * self.unit for size in self.sizes]
        parts = zip(self.query_HPD.split(patches, 1), self.key_HPD.split(patches, 1), strict=True)
        return self._cells(torch.cat([self._received(*part) for part in parts]))

    def _received(self, query_HSD: Tensor, key_HSD: Tensor) -> Tensor:
        heads, count = query_HSD.shape[:2]
        total = query_HSD.new_zeros(count)
        for block in query_HSD.split(max(1, _SCORE_ELEMENTS // (heads * count)), 1):
            weight = (block @ key_HSD.transpose(1, 2) * self.scaling).softmax(-1)
            total += weight.sum((0, 1))
        return total / (heads * count)

    def keys(self) -> Tensor:
        """(N, D) keys before rotary positions, mean over heads and patches."""
        return self._cells(self.raw_PD)

    def _cells(self, part: Tensor) -> Tensor:
        return part.unflatten(0, (-1, self.unit)).mean(1)[self.places]


@contextmanager
def watching_tower(model: Any, change: Callable[[Seen, Tensor], Tensor]) -> Iterator[None]:
    """Let `change(seen, cells)` replace what goes into the patch merger, (N, U, C), cell by cell.

    Raises:
        UnsupportedModelError: the model has no vision tower of Qwen2-VL's kind.
    """
    tower = _tower(model)
    full = getattr(tower, "fullatt_block_indexes", None)
    attention = tower.blocks[full[-1] if full else -1].attn
    noted: dict[str, Any] = {}

    def note_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted["hidden"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        noted["embeddings"] = kwargs["position_embeddings"]

    def merge(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        seen = _seen(tower, attention, grids[-1], **noted)
        hidden_PC = args[0]
        cell_NUC = hidden_PC.unflatten(0, (-1, seen.unit))
        changed = torch.empty_like(cell_NUC)
        changed[seen.places] = change(seen, cell_NUC[seen.places])
        return (changed.flatten(0, 1),)

    with _grids(tower) as grids, ExitStack() as hooks:
        hooks.callback(attention.register_forward_pre_hook(note_block, with_kwargs=True).remove)
        hooks.callback(tower.merger.register_forward_pre_hook(merge).remove)
        yield


@contextmanager
def watching_features(model: Any, is_left: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Set to NaN the features of a video's tokens that `is_left` rejects.

    Images, and videos of one time step, stay whole: the tower itself does not tell them apart.

    Args:
        model: a model with a vision tower of Qwen2-VL's kind.
        is_left: from the features of one video after the patch merger, float32 (T, S, C): T time
            steps of S tokens; to bool (T, S).

    Raises:
        UnsupportedModelError: the model has no such tower.
    """
    tower = _tower(model)

    def mark(_: nn.Module, args: tuple[Any, ...], feature_NC: Tensor) -> Tensor:
        shapes = _cell_shapes(tower, grids[-1])
        places = _places(tower, shapes).to(feature_NC.device)
        marked = feature_NC.clone()
        parts = places.split([t * h * w for t, h, w in shapes])
        for (t, _h, _w), place in zip(shapes, parts, strict=True):
            if t > 1:
                left = is_left(feature_NC[place].detach().float().unflatten(0, (t, -1)))
                marked[place[~left.flatten()]] = torch.nan
        return marked

    with _grids(tower) as grids, ExitStack() as hooks:
        hooks.callback(tower.merger.register_forward_hook(mark).remove)
        yield


@contextmanager
def _grids(tower: Any) -> Iterator[deque[Tensor]]:
    """The grid of the tower's latest call, (images or videos, 3): time steps, rows, columns."""
    grids: deque[Tensor] = deque(maxlen=1)

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grids.append(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])

    hook = tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield grids
    finally:
        hook.remove()


def _tower(model: Any) -> Any:
    owner = unwrapped(model)
    tower = getattr(getattr(owner, "model", None), "visual", None)
    if type(tower).__name__ not in (
        "Qwen2VisionTransformerPretrainedModel",
        "Qwen2_5_VisionTransformerPretrainedModel",
    ):
        raise UnsupportedModelError(
            "model",
            type(owner).__name__,
            "the vision tower of Qwen2-VL or Qwen2.5-VL is needed",
            "use another method, for example fastv",
        )
    return tower


@torch.no_grad()
def _seen(
    tower: Any, attention: Any, grid: Tensor, hidden: Tensor, embeddings: tuple[Tensor, Tensor]
) -> Seen:
    query_PHD, key_PHD, _ = (
        attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    )
    turned = apply_rotary_pos_emb_vision(query_PHD, key_PHD, *embeddings)
    query, key = (part.float().transpose(0, 1) for part in turned)
    shapes = _cell_shapes(tower, grid)
    places = _places(tower, shapes).to(hidden.device)
    sizes = [h * w for t, h, w in shapes for _ in range(t)]
    unit, raw_PD = int(tower.spatial_merge_size) ** 2, key_PHD.float().mean(1)
    return Seen(query, key, raw_PD, places, sizes, unit, float(attention.scaling))


def _cell_shapes(tower: Any, grid: Tensor) -> list[tuple[int, int, int]]:
    """Time steps, rows and columns of cells of each image or video."""
    merge = int(tower.spatial_merge_size)
    return [(t, h // merge, w // merge) for t, h, w in grid.tolist()]


def _places(tower: Any, shapes: list[tuple[int, int, int]]) -> Tensor:
    """int64 (N,): where in the blocks' order each cell of the prompt's order lies."""
    return torch.argsort(_block_order(tower, shapes))


def _block_order(tower: Any, shapes: list[tuple[int, int, int]]) -> Tensor:
    """Cells in the order in which the blocks see them: window by window in Qwen2.5-VL."""
    total = sum(t * h * w for t, h, w in shapes)
    if not hasattr(tower, "window_size"):
        return torch.arange(total)
    side = int(tower.window_size) // int(tower.spatial_merge_size) // int(tower.patch_size)
    pieces, first = [], 0
    for t, h, w in shapes:
        cells = torch.arange(first, first + t * h * w).view(t, h, w)
        first += t * h * w
        pieces += [
            window.flatten()
            for frame in cells
            for band in frame.split(side, 0)
            for window in band.split(side, 1)
        ]
    return torch.cat(pieces)
