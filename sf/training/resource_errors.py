"""What the machine may run out of in the middle of a run, said as what it is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException  # no Exception

from sf.errors import EnvironmentFault

__all__ = ["clear_faults"]

FULL_DISK = ("No space left", "inline_container.cc")
"""What errors of a full disk say that carry no number: safetensors', and torch.save's writer's."""
AGAIN = "the last whole checkpoint is intact, and the same command goes on from it"


@contextmanager
def clear_faults(trainer: Any, folder: Path) -> Iterator[None]:
    """Turn an exhausted disk or memory into one clear error.

    Args:
        trainer: transformers' trainer, for the step; it replaces its state when it starts.
        folder: of the checkpoints.

    Raises:
        EnvironmentFault: the disk is full or the memory was not enough; everything else passes.
    """
    try:
        yield
    except (Exception, CheckpointException) as error:
        said = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise EnvironmentFault(
                "memory",
                None,
                f"was not enough at step {trainer.state.global_step + 1}: {said}",
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
