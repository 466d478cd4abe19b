"""Atomic file replacement: a reader sees the old or the new content, never a part.

The content is written to a temporary file in the same folder, flushed to disk and renamed. A kill,
a full disk or a power failure leaves the old file.
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
    """Yield a path to write to, which replaces `path` if the block ends without an error.

    Args:
        path: the target; its folder is created.
        shared: whether several processes may write this target at once. Each then writes its own
            temporary file, which a killed writer leaves behind. Otherwise the name is fixed, and
            the next writer overwrites the file of a killed one.

    Yields:
        The temporary path, in the folder of the target.
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
    except OSError as error:  # some network file systems do not support this for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file with `content`."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    r"""Replace a file with UTF-8 text; line endings are unchanged.

    A lone surrogate, which UTF-8 cannot encode, is escaped, such as ``\ud800``.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, content: object) -> None:
    """Replace a file with JSON with sorted keys.

    Raises:
        TypeError: `content` contains a value that JSON cannot represent.
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
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
