"""Sealed checkpoints, which survive a kill, a full disk or a lost byte.

transformers writes a checkpoint file by file. A seal with the digest of every file comes last; a
folder without a valid seal is not a checkpoint. The previous one is kept until the next is sealed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sf.atomic_files import read_json, write_json
from sf.disk import require_room

__all__ = [
    "PARTS",
    "SEAL",
    "SealCheckpoints",
    "check_disk",
    "checkpoint_bytes",
    "last_sealed",
    "seal",
]

SEAL = "seal.json"
PARTS = "parts.json"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def seal(folder: Path) -> None:
    """Flush the folder's files to disk and record their digests atomically."""
    digests = {}
    for path in _files(folder):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        digests[str(path.relative_to(folder))] = _digest(path)
    write_json(folder / SEAL, digests)


def _damage(folder: Path) -> str | None:
    """The fault of a checkpoint, or None."""
    try:
        digests = read_json(folder / SEAL)
    except (OSError, ValueError):
        return "was not finished"
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if _digest(path) != digest:
            return f"has a damaged {name}"
    return None


def last_sealed(folder: Path) -> Path | None:
    """The newest complete checkpoint; newer damaged ones are removed with a warning.

    Args:
        folder: holds `checkpoint-STEP` folders.
    """
    checkpoints = sorted(
        folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )
    for path in checkpoints:
        damage = _damage(path)
        if damage is None:
            return path
        warnings.warn(f"{path.name} {damage}; continuing from an earlier one", stacklevel=2)
        shutil.rmtree(path)
    return None


def checkpoint_bytes(num_parameters: int, num_trained: int) -> int:
    """Bytes of a checkpoint: float32 weights and, of trained ones, two values of the optimiser."""
    return 4 * num_parameters + 8 * num_trained


def check_disk(folder: Path, num_parameters: int, num_trained: int, copies: int) -> float:
    """Check that the disk has space for the checkpoints.

    Args:
        folder: where they go.
        num_parameters: of the model.
        num_trained: of them with optimizer state (two float32 values each).
        copies: checkpoints kept, besides the one being written.

    Returns:
        GiB of one checkpoint.

    Raises:
        EnvironmentFault: there is not enough space for all copies.
    """
    size = checkpoint_bytes(num_parameters, num_trained)
    what = f"{copies + 1} checkpoints of {size / 2**30:.1f} GiB"
    require_room(folder, size * (copies + 1), what)
    return size / 2**30


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint once transformers has written it.

    Args:
        parts: name -> what has `state_dict` and `load_state_dict` of plain values, the same on all
            ranks, and is saved with each checkpoint. (transformers would build its callbacks anew
            when it resumes.)
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts

    def restore(self, folder: Path) -> None:
        """Restore the parts' state from a checkpoint."""
        saved = read_json(folder / PARTS)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after the last file of a checkpoint."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank's random state is part of it
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            content = {name: part.state_dict() for name, part in self.parts.items()}
            write_json(folder / PARTS, content)
            seal(folder)
