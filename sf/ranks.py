"""The processes of a job under torchrun: ranks and their synchronisation."""

from __future__ import annotations

import ctypes
import os
import signal
from datetime import timedelta
from typing import Any

from sf.errors import EnvironmentFault

__all__ = ["agreed", "gathered", "join", "meet", "rank", "world_size"]

PATIENCE = timedelta(hours=24)
"""Time limit for waiting for the first rank, which alone hashes inputs and writes results."""
_PR_SET_PDEATHSIG = 1
_control: Any = None


def rank() -> int:
    """The rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the job; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Open the process group if there are several ranks; may be called repeatedly.

    From then on, a rank also ends when torchrun is killed, since an orphan would keep the job's
    lock.

    Raises:
        EnvironmentFault: torchrun has already ended.
    """
    global _control
    if world_size() == 1 or _control is not None:
        return
    import torch
    import torch.distributed as dist

    _end_with_parent()
    if not dist.is_initialized():
        gpus = dist.is_nccl_available() and _has_gpu()
        if gpus:  # "cuda" then means this rank's device
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    # The default group's timeout is for the collectives of a training step.
    _control = dist.new_group(backend="gloo", timeout=PATIENCE)


def agreed(value: Any = None) -> Any:
    """The first rank's value, on every rank; the others' values are ignored."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    join()
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_control)
    return values[0]


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in rank order, on every rank; blocks until all have arrived."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    join()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_control)
    return values


def meet() -> None:
    """Wait until all ranks have arrived."""
    if world_size() > 1:
        import torch.distributed as dist

        join()
        dist.barrier(group=_control)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _end_with_parent() -> None:
    """On Linux, receive SIGKILL when the parent ends."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise EnvironmentFault("torchrun", None, "ended before its processes", "start again")
