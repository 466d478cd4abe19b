"""Disk space."""

from __future__ import annotations

import shutil
from pathlib import Path

from sf.errors import EnvironmentFault

__all__ = ["require_room"]


def require_room(folder: Path, size: float, what: str, remedy: str = "") -> None:
    """Check that a disk has enough space.

    Args:
        folder: on that disk; it need not exist.
        size: required bytes.
        what: will be stored, for the message.
        remedy: alternative to freeing space, for the message.

    Raises:
        EnvironmentFault: there is less space.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise EnvironmentFault(
            "free disk space",
            f"{free / 2**30:.2f} GiB",
            f"must hold {what} at {folder}",
            f"free some space or {remedy or 'link `results` to a larger disk'}",
        )
