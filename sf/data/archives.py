"""Media inside archives: found through an index, read in place or unpacked at most once.

A zip's central directory is its index: members are read in place ("ARCHIVE.zip!/MEMBER"). A tar has
none and a compressed one allows no random access: one pass over it unpacks the members that rows
refer to into `ARCHIVE.unpacked/` beside it and writes `index.json` there; the next call reads that
and passes over the archive again only if it needs members that are not out yet.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sf.data.media import MEMBER
from sf.errors import DataError

__all__ = ["ArchiveIndex", "archive_stem", "find_archives", "is_archive"]

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
UNPACKED = ".unpacked"
_LARGEST_MEMBER = 16 * 2**30
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def is_archive(name: str) -> bool:
    """Whether a file name is that of a zip or tar archive."""
    return name.lower().endswith((".zip", *_TAR))


def find_archives(root: Path) -> list[str]:
    """POSIX paths of all archives below `root`, sorted; symbolic links are not followed.

    An archive that is itself a link counts only if it lies below the root as well.
    """
    real_root = os.path.realpath(root) + os.sep
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.endswith(UNPACKED)]
        paths = [os.path.join(folder, name) for name in files if is_archive(name)]
        found += [path for path in paths if os.path.realpath(path).startswith(real_root)]
    return sorted(Path(path).relative_to(root).as_posix() for path in found)


def archive_stem(archive: str) -> str:
    """File name without its archive suffix."""
    name = posixpath.basename(archive)
    for suffix in (*_TAR[1:], ".tar", ".zip"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _unreadable(archive: str, error: Exception) -> DataError:
    return DataError("archive", archive, f"it cannot be read: {error}", "fetch it again")


class ArchiveIndex:
    """Where in the archives below a root a media path lies.

    A member may be named relative to the archive's folder, to the root, or to a folder called like
    the archive; all three occur in published data sets.

    Args:
        root: the data root.

    Raises:
        DataError: an archive cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archives = find_archives(root)
        self._zipped: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        for archive in self.archives:
            if archive.lower().endswith(".zip"):
                self._index_zip(archive)

    def _places(self, archive: str, member: str) -> Iterator[str]:
        """The media paths that a member can stand for, the most likely first."""
        folder, name = posixpath.dirname(archive), posixpath.normpath(member)
        yield posixpath.join(folder, name)
        yield name
        yield posixpath.join(folder, archive_stem(archive), name)

    def _index_zip(self, archive: str) -> None:
        try:
            with zipfile.ZipFile(self.root / archive) as opened:
                members = [info for info in opened.infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise _unreadable(archive, error) from error
        for info in members:
            reference = f"{archive}{MEMBER}{info.filename}"
            self._sizes[reference] = info.file_size
            for place in self._places(archive, info.filename):
                self._zipped.setdefault(place, reference)

    def find(self, media: str) -> str | None:
        """The reference of a media path inside a zip archive, or None."""
        return self._zipped.get(media)

    def size(self, reference: str) -> int:
        """Unpacked bytes of a member that `find` returned."""
        return self._sizes[reference]

    def unpack_tars(self, wanted: Iterable[str]) -> dict[str, str]:
        """Unpack the wanted media from tar archives, each at most once.

        Args:
            wanted: media paths that are neither on disk nor in a zip.

        Returns:
            Media path -> path of the unpacked file relative to the root, for those that were found.

        Raises:
            DataError: an archive is damaged, or its folder cannot be written.
        """
        missing, found = set(wanted), {}
        for archive in self.archives:
            if missing and not archive.lower().endswith(".zip"):
                out = self._unpack(archive, missing)
                found.update(out)
                missing -= out.keys()
        return found

    def _unpack(self, archive: str, wanted: set[str]) -> dict[str, str]:
        source, target = self.root / archive, self.root / (archive + UNPACKED)
        record = target / "index.json"
        state = source.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        index = json.loads(record.read_text()) if record.is_file() else {}
        if index.get("stamp") == stamp:
            places = self._match(archive, index["members"], wanted)
            if all((target / member).is_file() for member in places.values()):
                return {media: f"{archive}{UNPACKED}/{name}" for media, name in places.items()}
        try:
            target.mkdir(exist_ok=True)
            members = self._pass_over(archive, source, target, wanted)
            beside = record.with_suffix(".tmp")
            beside.write_text(json.dumps({"stamp": stamp, "members": members}))
            beside.replace(record)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise _unreadable(archive, error) from error
            rule = f"it cannot be unpacked beside itself: {error.strerror}"
            remedy = "make room and writing possible there, or unpack it by hand"
            raise DataError("archive", archive, rule, remedy) from error
        except (tarfile.TarError, EOFError) as error:
            raise _unreadable(archive, error) from error
        places = self._match(archive, members, wanted)
        return {media: f"{archive}{UNPACKED}/{name}" for media, name in places.items()}

    def _match(self, archive: str, members: Iterable[str], wanted: set[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for member in members:
            for place in self._places(archive, member):
                if place in wanted:
                    found.setdefault(place, posixpath.normpath(member))
        return found

    def _pass_over(self, archive: str, source: Path, target: Path, wanted: set[str]) -> list[str]:
        """Read a tar once; unpack wanted members that are not out yet. Returns all members."""
        members = []
        with tarfile.open(source, "r|*") as opened:
            for info in opened:
                name = posixpath.normpath(info.name)
                unsafe = name.startswith("/") or ".." in name.split("/")
                if not info.isfile() or unsafe or info.size > _LARGEST_MEMBER:
                    continue
                members.append(name)
                path = target / name
                if not self._match(archive, [name], wanted) or path.is_file():
                    continue
                content = opened.extractfile(info)
                if content is None:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(path.name + ".partial")
                with beside.open("wb") as file:
                    shutil.copyfileobj(content, file, 2**20)
                beside.replace(path)
        return members
