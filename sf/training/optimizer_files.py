"""The state of a divided optimiser as safetensors files, which hold numbers and no code.

torch's own reader for divided checkpoints unpickles an index, so whoever can write into a folder
of checkpoints could run code in the next job. Here each rank writes its part of every tensor as
`rank-K.safetensors`, and the first rank the plain values as `index.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Shard

from sf.atomic_files import read_json, write_json
from sf.errors import DataError
from sf.ranks import meet, rank, world_size

__all__ = ["read_state", "write_state"]

INDEX = "index.json"
State = dict[str, Any]
"""{"state": {weight: {moment: tensor}}, "param_groups": [{name: plain value}]}."""


def write_state(state: State, folder: Path) -> None:
    """Write this rank's part; all ranks must call it.

    Args:
        state: of `get_optimizer_state_dict`; tensors are divided along their first axis or whole.
        folder: one for all ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(state):
        if isinstance(tensor, DTensor):
            _require_rows(name, tensor)
            own[name] = tensor.to_local().contiguous()
        elif rank() == 0:
            own[name] = tensor.contiguous()
    save_file(own, folder / _file(rank()))
    if rank() == 0:
        index = {"ranks": world_size(), "param_groups": state["param_groups"]}
        write_json(folder / INDEX, index)
    meet()


def read_state(state: State, folder: Path) -> None:
    """Restore a state written by `write_state`, with any number of ranks.

    Args:
        state: of `get_optimizer_state_dict`; changed in place.
        folder: as given to `write_state`.

    Raises:
        DataError: the files are of another model or damaged.
    """
    index = read_json(folder / INDEX)
    with ExitStack() as stack:
        parts = [
            stack.enter_context(safe_open(folder / _file(at), framework="pt"))
            for at in range(index["ranks"])
        ]
        for name, tensor in _tensors(state):
            own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            first = _first_row(tensor) if isinstance(tensor, DTensor) else None
            saved = _rows(parts, name, first, own)
            if saved.shape != own.shape or saved.dtype != own.dtype:
                rule = f"is {saved.dtype} {list(saved.shape)}, not {own.dtype} {list(own.shape)}"
                raise DataError("optimiser state", name, rule, "resume with the same model")
            own.copy_(saved)
    groups = state["param_groups"]
    for group, saved_group in zip(groups, index["param_groups"], strict=True):
        for name, value in saved_group.items():
            group[name] = tuple(value) if isinstance(group.get(name), tuple) else value


def _file(at: int) -> str:
    return f"rank-{at}.safetensors"


def _tensors(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    moments: Mapping[str, Mapping[str, Any]] = state["state"]
    for weight, values in moments.items():
        for moment, tensor in values.items():
            yield f"{weight}/{moment}", tensor


def _require_rows(name: str, tensor: DTensor) -> None:
    assert tensor.placements == (Shard(0),), f"{name} is divided as {tensor.placements}"


def _first_row(tensor: DTensor) -> int:
    """The first row of this rank: all ranks except the last ones have ⌈rows / ranks⌉ rows."""
    rows = int(tensor.shape[0])
    return min(rank() * -(-rows // world_size()), rows)


def _rows(parts: list[Any], name: str, first: int | None, own: torch.Tensor) -> torch.Tensor:
    """Rows `first` to `first + len(own)` of a tensor that was divided over `parts`.

    Args:
        parts: open files, by rank.
        name: of the tensor.
        first: None for a tensor that was whole.
        own: of the wanted shape.
    """
    holders = [part for part in parts if name in part.keys()]  # noqa: SIM118 - no mapping
    if not holders:
        remedy = "resume with the same model"
        raise DataError("optimiser state", name, "is not in the checkpoint", remedy)
    if first is None:
        return holders[0].get_tensor(name)
    wanted, begin, pieces = range(first, first + len(own)), 0, []
    for part in holders:
        rows = part.get_slice(name)
        count = rows.get_shape()[0]
        low, high = max(wanted.start, begin), min(wanted.stop, begin + count)
        if low < high:
            pieces.append(rows[low - begin : high - begin])
        begin += count
    return torch.cat(pieces) if pieces else holders[0].get_tensor(name)[:0]
