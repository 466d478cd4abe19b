"""The numerical kernels of sparse attention, one backend per kind of device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from sf.attention.backends.base import Backend
from sf.attention.backends.sdpa import SdpaBackend

__all__ = ["Backend", "SdpaBackend", "backend_for", "using_backend"]

_SDPA = SdpaBackend()
_chosen: list[Backend] = []


def backend_for(device: torch.device) -> Backend:
    """The fastest backend for tensors on `device`, or the one of `using_backend`."""
    if _chosen:
        return _chosen[-1]
    return _cuda() if device.type == "cuda" else _SDPA


@contextmanager
def using_backend(backend: Backend) -> Iterator[None]:
    """Use this backend on every device, for example to compare backends."""
    _chosen.append(backend)
    try:
        yield
    finally:
        _chosen.pop()


@lru_cache
def _cuda() -> Backend:
    try:
        from sf.attention.backends.cuda import CudaBackend
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "triton":
            raise
        warnings.warn(
            "triton is not installed: selection on this GPU uses PyTorch's operators, which are "
            "slower and need more memory; install triton (in PyTorch's CUDA builds for Linux)",
            RuntimeWarning,
            stacklevel=2,
        )
        return _SDPA
    return CudaBackend()
