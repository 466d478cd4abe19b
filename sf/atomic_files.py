"""Files that are replaced as a whole: a reader sees the old or the new content, never a part.

The content is written beside its target, forced to disk and renamed. A kill, a full disk or a power
failure leaves the old file.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["read_json", "replacing", "write_bytes", "write_json", "write_text"]


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a path to write to; it replaces `path` when the block ends without an error.

    Args:
        path: the target; its folder is made.
        shared: several processes may write this target at once. Each then writes a file of its own;
            a killed writer leaves it behind. Otherwise the name is fixed, and the next writer
            overwrites what a killed one left.

    Yields:
        The path beside the target, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f".{uuid.uuid4().hex}" if shared else ""
    part = path.with_name(f".{path.name}{owner}.part")
    try:
        yield part
        _force_to_disk(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    try:
        _force_to_disk(path.parent)
    except OSError as error:  # some network file systems cannot do this for a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by `content`."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    r"""Replace a file by UTF-8 text; line ends stay as they are.

    A lone surrogate, which UTF-8 cannot hold, becomes its escape, such as ``\ud800``.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, content: object) -> None:
    """Replace a file by JSON with sorted keys.

    Raises:
        TypeError: `content` holds a value that JSON cannot.
    """
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty or damaged; the message names it.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} contains no JSON: {error}") from error


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
