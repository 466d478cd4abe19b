"""Atomic state files from which a killed run resumes."""

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
    """Replace a file with tensors and plain values, preceded by their digest."""
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, hashlib.sha256(content.getvalue()).digest() + content.getvalue())


def read_state(path: Path) -> dict[str, Any] | None:
    """Read the state that `write_state` wrote; None if missing, or, with a warning, if damaged.

    Raises:
        DataError: the file contains something other than tensors and plain values.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        warnings.warn(f"{path} is damaged; the work that it recorded is repeated", stacklevel=2)
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(rest), weights_only=True)
    except pickle.UnpicklingError as error:
        rule = "contains other objects than numbers, which this package never writes: not loaded"
        remedy = "check who can write there and delete it; the same command then starts over"
        raise DataError("checkpoint", str(path), rule, remedy) from error
    return state
