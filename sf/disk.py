"""Room on disks."""

from __future__ import annotations

import shutil
from pathlib import Path

from sf.errors import EnvironmentFault

__all__ = ["require_room"]


def require_room(folder: Path, size: float, what: str, remedy: str = "") -> None:
    """Refuse to begin what a disk has no room for.

    Args:
        folder: on that disk; it need not be there yet.
        size: bytes that are needed.
        what: will lie there, for the message.
        remedy: what to do besides freeing some space.

    Raises:
        EnvironmentFault: there is less room.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise EnvironmentFault(
            "free disk space",
            f"{free / 2**30:.2f} GiB",
            f"must hold {what} at {folder}",
            f"free some space or {remedy or 'link `results` to a larger disk'}",
        )
