"""A folder for the unpacked members of an archive, which are never written outside it.

The archive and its neighbouring files are untrusted: the folder may already exist and contain links
that lead elsewhere. No link is followed, neither for reading nor for writing. `sf.atomic_files` is
therefore not used, since it follows a link at its temporary name.
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
        path: of the folder; its parent is trusted.

    Raises:
        DataError: the path is a link or not a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            rule = "members are unpacked there, so it must be a folder and not a symbolic link"
            raise DataError("archive", str(path), rule, "remove it")

    def make(self) -> None:
        """Create the folder if it does not exist."""
        self.path.mkdir(exist_ok=True)

    def recorded(self, stamp: Sequence[int]) -> list[str]:
        """The archive's members as an earlier call recorded them; empty if the stamp differs."""
        try:
            record = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
            members = record["members"] if record["stamp"] == list(stamp) else []
            return [str(member) for member in members]
        except (OSError, ValueError, LookupError, TypeError):
            return []  # missing or damaged: the archive is read again

    def record(self, stamp: Sequence[int], members: Sequence[str]) -> None:
        """Record the archive's members."""
        text = json.dumps({"stamp": list(stamp), "members": list(members)})
        beside = self.path / (RECORD + ".partial")
        with _created(beside) as file:
            file.write(text.encode())
        beside.replace(self.path / RECORD)

    def holds(self, name: str) -> bool:
        """Whether a member is unpacked: a regular file whose path contains no link."""
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
        """Unpack one member atomically.

        Returns:
            "", or the reason why it cannot have this name.

        Raises:
            OSError: the file system is full or cannot be written.
        """
        place = self.path / name
        try:
            folder = self.path
            for part in Path(name).parts[:-1]:
                folder /= part
                if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                    return f"lies below {part}, which is a link or not a folder"
                folder.mkdir(exist_ok=True)
            if place.is_dir() and not place.is_symlink():
                return "has the name of a folder"
            beside = place.with_name(place.name + ".partial")
            with _created(beside) as file:
                shutil.copyfileobj(content, file, 2**20)
            beside.replace(place)
        except OSError as error:
            if error.errno in _OF_THE_NAME:
                return f"has a name that this file system does not allow: {error.strerror}"
            raise
        return ""


def _created(path: Path) -> IO[bytes]:
    """A new file, replacing any existing file or link."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
