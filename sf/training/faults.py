"""What the machine may run out of in the middle of a run, said as what it is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sf.errors import EnvironmentFault

__all__ = ["clear_faults"]

AGAIN = "the last whole checkpoint is intact, and the same command goes on from it"


@contextmanager
def clear_faults(state: Any, folder: Path) -> Iterator[None]:
    """Turn an exhausted disk or memory into one clear error.

    Args:
        state: transformers' trainer state, for the step.
        folder: of the checkpoints.

    Raises:
        EnvironmentFault: the disk is full or the memory was not enough; everything else passes.
    """
    try:
        yield
    except Exception as error:
        step = f"at step {state.global_step + 1}"
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise EnvironmentFault(
                "memory",
                None,
                f"was not enough {step}: {str(error).splitlines()[0] if str(error) else ''}",
                f"lower rollouts_per_forward, or set gradient_checkpointing; {AGAIN}",
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            free = shutil.disk_usage(folder).free / 2**30
            raise EnvironmentFault(
                "free disk space",
                f"{free:.2f} GiB",
                f"was not enough {step} at {folder}",
                f"free some space or link `results` to a larger disk; {AGAIN}",
            ) from error
        raise
