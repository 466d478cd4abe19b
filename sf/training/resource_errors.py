"""Clear errors for a full disk, too little memory and unsafe checkpoints."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sf.errors import DataError, EnvironmentFault

__all__ = ["clear_faults"]

FULL_DISK = ("No space left", "inline_container.cc")
"""Texts of full-disk errors without an error number, from safetensors and torch.save."""
AGAIN = "the last whole checkpoint is intact, and the same command goes on from it"


@contextmanager
def clear_faults(trainer: Any, folder: Path) -> Iterator[None]:
    """Turn an exhausted disk or memory, or code in a checkpoint, into one clear error.

    Args:
        trainer: transformers' trainer, for the step; it replaces its state when it starts.
        folder: of the checkpoints.

    Raises:
        EnvironmentFault: the disk is full, or memory is too small.
        DataError: a checkpoint file contains more than numbers. All other errors pass unchanged.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        rule = "holds something other than numbers, which this package never writes: not loaded"
        remedy = "find out who can write there and delete the folder; the same command starts over"
        raise DataError("checkpoint", str(folder), rule, remedy) from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise EnvironmentFault(
                "memory",
                None,
                f"was not enough at step {trainer.state.global_step + 1}: {reason}",
                f"lower rollouts_per_forward, or set gradient_checkpointing; {AGAIN}",
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC or any(
            words in str(error) for words in FULL_DISK
        ):
            free = shutil.disk_usage(folder).free / 2**30
            raise EnvironmentFault(
                "free disk space",
                f"{free:.2f} GiB",
                f"was not enough after step {trainer.state.global_step} at {folder}",
                f"free some space or link `results` to a larger disk; {AGAIN}",
            ) from error
        raise
