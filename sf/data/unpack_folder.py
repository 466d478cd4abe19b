"""A folder that members of an archive are unpacked into, and nothing outside it.

The archive and what lies beside it come from other people: the folder may already be there and hold
links that lead elsewhere. No link is followed, neither for reading nor for writing; hence files are
not replaced by `sf.atomic_files`, which writes to whatever its part's name leads to.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sf.errors import DataError

__all__ = ["RECORD", "UnpackFolder"]

RECORD = "index.json"
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


class UnpackFolder:
    """Members below one folder.

    Args:
        path: of the folder; its own parent is trusted.

    Raises:
        DataError: the path is taken by a link or by something that is no folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            rule = "members are unpacked there, so it must be a folder and no symbolic link"
            raise DataError("archive", str(path), rule, "remove it")

    def make(self) -> None:
        """Make the folder if it is not there."""
        self.path.mkdir(exist_ok=True)

    def recorded(self, stamp: Sequence[int]) -> list[str]:
        """The archive's members as an earlier call recorded them; empty if the stamp differs."""
        try:
            record = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
            members = record["members"] if record["stamp"] == list(stamp) else []
            return [str(member) for member in members]
        except (OSError, ValueError, LookupError, TypeError):
            return []  # none yet, or damaged: the archive is read again

    def record(self, stamp: Sequence[int], members: Sequence[str]) -> None:
        """Remember the archive's members."""
        text = json.dumps({"stamp": list(stamp), "members": list(members)})
        beside = self.path / (RECORD + ".partial")
        with _created(beside) as file:
            file.write(text.encode())
        beside.replace(self.path / RECORD)

    def holds(self, name: str) -> bool:
        """Whether a member is out: a regular file that no link leads to."""
        place = self.path / name
        folder = place.parent
        while folder != self.path:
            if folder.is_symlink():
                return False
            folder = folder.parent
        try:
            return stat.S_ISREG(place.lstat().st_mode)
        except OSError:
            return False

    def write(self, name: str, content: IO[bytes]) -> str:
        """Unpack one member; it is whole or not there.

        Returns:
            "", or why it cannot lie at this name.

        Raises:
            OSError: the file system takes nothing more.
        """
        place = self.path / name
        try:
            folder = self.path
            for part in Path(name).parts[:-1]:
                folder /= part
                if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                    return f"lies below {part}, which is a link or no folder"
                folder.mkdir(exist_ok=True)
            if place.is_dir() and not place.is_symlink():
                return "has the name of a folder"
            beside = place.with_name(place.name + ".partial")
            with _created(beside) as file:
                shutil.copyfileobj(content, file, 2**20)
            beside.replace(place)
        except OSError as error:
            if error.errno in _OF_THE_NAME:
                return f"has a name that this file system does not take: {error.strerror}"
            raise
        return ""


def _created(path: Path) -> IO[bytes]:
    """A new file; what lay there, a link for instance, is removed."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
