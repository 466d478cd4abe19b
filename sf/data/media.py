"""Opening media by reference: a file, or a member of a zip archive.

A reference is a path, or "ARCHIVE.zip!/MEMBER". Members are read in place; nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO

from sf.errors import DataError

__all__ = [
    "ARCHIVE_DAMAGE",
    "MAX_MEDIA_BYTES",
    "MEMBER",
    "clean_member",
    "media_digest",
    "media_size",
    "num_decoders",
    "open_media",
    "split_reference",
]

MEMBER = "!/"
MAX_MEDIA_BYTES = 4 * 2**30
# Exceptions of zipfile and tarfile on damaged archives.
ARCHIVE_DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    lzma.LZMAError,
    MemoryError,
    OSError,
    RuntimeError,
    struct.error,
    tarfile.TarError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_SMALL_MEMBER = 64 * 2**20  # bytes; smaller members may have any compression ratio
_MOST_GROWTH = 50  # largest compression ratio; media are already compressed


def num_decoders() -> int:
    """Number of decoding threads: the cores available to this process."""
    return len(os.sched_getaffinity(0))


def clean_member(name: str) -> str:
    """A member's name as a relative POSIX path: "./a", "//a" and "\\a" are "a".

    Archives from Windows contain backslashes, others leading slashes. Such names are never used
    for writing.
    """
    return posixpath.normpath("/" + name.replace("\\", "/").lstrip("/")).lstrip("/")


@lru_cache(maxsize=16)
def _archive(
    path: str, process: int, changed_ns: int
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """A zip and its members by clean name.

    Each process has its own handle: a forked process would share the file position.
    """
    archive = zipfile.ZipFile(path)
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        members.setdefault(clean_member(info.filename), info)
    return archive, members


def split_reference(reference: str | Path) -> tuple[str, str]:
    """The file that contains the media, and the member's name if it is an archive, else "".

    A folder may be called "x!" or even "x.zip!": an existing path is never read as a member.
    """
    text = str(reference)
    place = text.find(MEMBER)
    if place >= 0 and not os.path.lexists(text):
        while place >= 0:
            if text[:place].lower().endswith(".zip") and os.path.isfile(text[:place]):
                return text[:place], text[place + len(MEMBER) :]
            place = text.find(MEMBER, place + 1)
    return text, ""


def _member(archive: str, name: str) -> tuple[zipfile.ZipFile, zipfile.ZipInfo]:
    reference = archive + MEMBER + name
    try:
        opened, members = _archive(archive, os.getpid(), os.stat(archive).st_mtime_ns)
        return opened, members[clean_member(name)]
    except KeyError as error:
        rule = "the archive has no such member"
        raise DataError("media", reference, rule, "drop it") from error
    except ARCHIVE_DAMAGE as error:
        raise DataError("media", reference, f"cannot be read: {error}", "fetch it again") from error


def media_size(reference: str | Path) -> int:
    """Bytes of the media.

    Raises:
        DataError: there is no such file or archive member.
    """
    text, name = split_reference(reference)
    if name:
        return _member(text, name)[1].file_size
    try:
        return Path(text).stat().st_size
    except OSError as error:
        raise DataError("media", text, f"cannot be read: {error.strerror}", "drop it") from error


def open_media(reference: str | Path) -> IO[bytes]:
    """A seekable binary stream of the media; the caller closes it.

    Args:
        reference: a path, or "ARCHIVE.zip!/MEMBER".

    Raises:
        DataError: the media are missing, unreadable, empty or a decompression bomb.
    """
    text, name = str(reference), split_reference(reference)[1]
    size = media_size(text)
    if size == 0:
        raise DataError("media", text, "the file is empty (0 bytes)", "fetch it again")
    if not name:
        try:
            return open(text, "rb")
        except OSError as error:
            raise DataError(
                "media", text, f"cannot be read: {error.strerror}", "drop it"
            ) from error
    archive, info = _member(text[: -len(MEMBER + name)], name)
    grown = size / max(info.compress_size, 1)
    if size > MAX_MEDIA_BYTES or (size > _SMALL_MEMBER and grown > _MOST_GROWTH):
        rule = f"{size} bytes out of {info.compress_size} are a decompression bomb"
        raise DataError("media", text, rule, "drop the row")
    try:
        return io.BytesIO(archive.read(info))
    except ARCHIVE_DAMAGE as error:
        raise DataError("media", text, f"cannot be unpacked: {error}", "fetch it again") from error


def media_digest(reference: str | Path) -> str:
    """Digest of the media's bytes, 32 hexadecimal digits; equal on disk and in an archive.

    Raises:
        DataError: see `open_media`.
    """
    with open_media(reference) as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()  # type: ignore[arg-type]
