"""Tensors that a killed run goes on from: whole, or not there."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from sf.atomic_files import write_bytes
from sf.errors import DataError

__all__ = ["read_state", "write_state"]

_DIGEST_BYTES = hashlib.sha256().digest_size


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace a file by tensors and plain values, behind their digest."""
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, hashlib.sha256(content.getvalue()).digest() + content.getvalue())


def read_state(path: Path) -> dict[str, Any] | None:
    """What `write_state` wrote; None without a file, and with a warning for a damaged one.

    Raises:
        DataError: the file holds more than tensors and plain values.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        warnings.warn(f"{path} is damaged; its part of the work is done again", stacklevel=2)
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(rest), weights_only=True)
    except pickle.UnpicklingError as error:
        rule = "holds something other than numbers, which this package never writes: not loaded"
        remedy = "find out who can write there and delete it; the same command starts over"
        raise DataError("checkpoint", str(path), rule, remedy) from error
    return state
