"""Content digests of files; a file is read again only if its status changed.

`contents.json` in the work folder of a result stores the size, times and inode of each file read.
A file with another status is read again: copying or linking a checkout changes no digest, and
changed bytes are always noticed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sf.atomic_files import write_json
from sf.errors import DataError
from sf.layout import STAMP, work_folder
from sf.result_key.stamp import read_stamp

__all__ = ["Contents", "damaged", "digest_of", "file_digests", "input_digest"]

CACHE = "contents.json"
SETTLED_NS = 100_000_000
"""A file modified more recently is read again: it can change again within the same time stamp."""


def digest_of(content: object) -> str:
    """A 16-character hash of JSON-able content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Contents:
    """The digests of files, with the status of each when it was read."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known: dict[str, list[Any]] = {}
        self.changed = False
        try:
            known = json.loads(cache.read_bytes())
        except (OSError, ValueError):
            return  # missing or damaged cache: files are read again
        if isinstance(known, dict):
            self.known = known

    def digest(self, path: Path, name: str) -> str:
        """BLAKE2b of a file's bytes.

        Args:
            path: the file.
            name: its key in the cache; relative, so that a moved folder keeps its cache.
        """
        status = _status(path)
        entry = self.known.get(name)
        if isinstance(entry, list) and entry[:-1] == status:
            return str(entry[-1])
        with path.open("rb") as stream:
            hashed = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        digest = hashed.hexdigest()
        if _status(path) == status and time.time_ns() - max(status[1:3]) > SETTLED_NS:
            self.known[name] = [*status, digest]
            self.changed = True
        return digest

    def save(self) -> None:
        """Write the cache if possible; a failure does not affect the result."""
        if not self.changed:
            return
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.cache, self.known)
        except OSError:
            return  # read-only inputs are read every time


def _status(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@contextmanager
def _contents(cache: Path) -> Iterator[Contents]:
    contents = Contents(cache)
    try:
        yield contents
    finally:
        contents.save()


def file_digests(folder: Path, work: Path) -> dict[str, list[Any]]:
    """{relative path: [size in bytes, digest]} of all files below `folder` except the stamp.

    Args:
        folder: of a result.
        work: the work folder of the result.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    names.pop(STAMP, None)
    with _contents(work / CACHE) as contents:
        return {n: [path.stat().st_size, contents.digest(path, n)] for n, path in names.items()}


def damaged(folder: Path, files: Mapping[str, list[Any]]) -> list[str]:
    """The recorded files that are missing from a result's folder or have other contents."""
    with _contents(work_folder(folder) / CACHE) as contents:
        return [
            name
            for name, (size, digest) in files.items()
            if not (folder / name).is_file()
            or (folder / name).stat().st_size != size
            or contents.digest(folder / name, name) != digest
        ]


def input_digest(path: Path, work: Path | None = None) -> str:
    """A hash of a stage's input: a result's files, or the bytes of another file.

    Args:
        path: folder of a result, or a file.
        work: the work folder of the reading job; caches the status of files outside results.

    Raises:
        DataError: the path does not exist, is an incomplete result, or has a damaged file.
    """
    if path.is_file():
        with _contents((work or work_folder(path)) / CACHE) as contents:
            return contents.digest(path, str(path.absolute()))
    if not path.exists():
        raise DataError(
            "input", str(path), "does not exist", "run the stage that writes it, or `make study`"
        )
    stamp = read_stamp(path / STAMP)
    if stamp is None:
        raise DataError(
            "input", str(path), f"has no valid {STAMP}: it is incomplete", "run its stage again"
        )
    names = damaged(path, stamp["files"])
    if names:
        raise DataError(
            "input",
            str(path / names[0]),
            "is missing or differs from what its stage wrote"
            + (f" ({len(names) - 1} more files of this result too)" if names[1:] else ""),
            f"run its stage again: `make study`, or the command in {path / STAMP}",
        )
    return digest_of(stamp["files"])
