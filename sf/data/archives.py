"""Media inside archives: indexed, read in place or unpacked at most once.

A zip's central directory is its index: members are read in place ("ARCHIVE.zip!/MEMBER"). A tar
has no index, and a compressed one no random access: a single pass unpacks the members that rows
refer to into `ARCHIVE.unpacked/` next to the archive and writes `index.json` there. Later calls
read the index and make another pass only for members that are not unpacked yet.

Names are compared as relative POSIX paths in one Unicode form. A name that is not marked as UTF-8
is decoded with each legacy encoding in turn.
"""

from __future__ import annotations

import errno
import os
import posixpath
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path

from sf.data.media import ARCHIVE_DAMAGE, MEMBER, clean_member
from sf.data.unpack_folder import RECORD, UnpackFolder
from sf.errors import DataError

__all__ = ["ArchiveIndex", "archive_stem", "find_archives", "is_archive"]

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
UNPACKED = ".unpacked"
_LARGEST_MEMBER = 16 * 2**30
_UTF8_FLAG = 0x800
# For names that are not marked as UTF-8, in the order in which they are tried.
_ENCODINGS = (
    *("utf-8", "gb18030", "shift_jis", "euc_kr", "big5", "cp1252", "cp1251"),
    *("cp866", "cp850", "cp437", "latin-1"),
)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def is_archive(name: str) -> bool:
    """Whether a file name has the suffix of a zip or tar archive."""
    return name.lower().endswith((".zip", *_TAR))


def find_archives(root: Path) -> list[str]:
    """POSIX paths of all archives below `root`, sorted; symbolic links are not followed.

    An archive that is itself a link is included only if its target is below the root too.
    """
    real_root = os.path.realpath(root) + os.sep
    archives = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.endswith(UNPACKED)]
        paths = [os.path.join(folder, name) for name in files if is_archive(name)]
        archives += [path for path in paths if os.path.realpath(path).startswith(real_root)]
    return sorted(Path(path).relative_to(root).as_posix() for path in archives)


def archive_stem(archive: str) -> str:
    """File name without its archive suffix."""
    name = posixpath.basename(archive)
    for suffix in (*_TAR[1:], ".tar", ".zip"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _decoded(raw: bytes) -> list[str]:
    """The possible readings of a name that is not known to be UTF-8."""
    names = []
    for encoding in _ENCODINGS:
        with suppress(UnicodeDecodeError):
            names.append(raw.decode(encoding))
    return names


def _composed(path: str) -> str:
    """A path in the Unicode form used for comparison."""
    return unicodedata.normalize("NFC", path)


class ArchiveIndex:
    """Locates media paths in the archives below a root.

    A member's name may be relative to the archive's folder, to the root, or to a folder with the
    archive's name; all three occur in published datasets.

    Args:
        root: the data root.

    Attributes:
        damaged: archives that cannot be read completely, with the reason. The members before the
            damage in a tar are used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: dict[str, str] = {}
        self.archives = find_archives(root)
        self._zipped: dict[str, str] = {}
        self._guessed: dict[str, str] = {}  # by names in an encoding that the zip does not state
        self._sizes: dict[str, int] = {}
        for archive in self.archives:
            if archive.lower().endswith(".zip"):
                self._index_zip(archive)

    def _places(self, archive: str, member: str) -> Iterator[str]:
        """The possible media paths of a member, the most likely first."""
        folder, name = posixpath.dirname(archive), _composed(clean_member(member))
        yield posixpath.join(folder, name)
        yield name
        yield posixpath.join(folder, archive_stem(archive), name)

    def _index_zip(self, archive: str) -> None:
        try:
            with zipfile.ZipFile(self.root / archive) as opened:
                members = [info for info in opened.infolist() if not info.is_dir()]
        except ARCHIVE_DAMAGE as error:
            self.damaged[archive] = str(error)
            return
        for info in members:
            reference = f"{archive}{MEMBER}{clean_member(info.filename)}"
            self._sizes[reference] = info.file_size
            for place in self._places(archive, info.filename):
                self._zipped.setdefault(place, reference)
            if info.flag_bits & _UTF8_FLAG or info.filename.isascii():
                continue
            for name in _decoded(info.filename.encode("cp437")):  # zipfile's decoding undone
                for place in self._places(archive, name):
                    self._guessed.setdefault(place, reference)

    def find(self, media: str) -> str | None:
        """The reference of a media path inside a zip archive, or None."""
        path = _composed(media)
        return self._zipped.get(path, self._guessed.get(path))

    def size(self, reference: str) -> int:
        """Unpacked bytes of a member that `find` returned."""
        return self._sizes[reference]

    def unpack_tars(self, wanted: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Unpack the wanted media from tar archives, each at most once.

        Args:
            wanted: media paths that are neither on disk nor in a zip.

        Returns:
            Media path -> path of the unpacked file relative to the root; and media path -> reason,
            for members that were not unpacked.

        Raises:
            DataError: the folder for an archive's members cannot be written.
        """
        forms = {_composed(media): media for media in wanted}
        unpacked: dict[str, str] = {}
        refused: dict[str, str] = {}
        for archive in self.archives:
            missing = forms.keys() - unpacked.keys()
            if missing and not archive.lower().endswith(".zip"):
                members, faults = self._unpack(archive, missing)
                unpacked.update(members)
                refused.update(faults)
        out = {forms[place]: reference for place, reference in unpacked.items()}
        return out, {forms[place]: rule for place, rule in refused.items() if place not in unpacked}

    def _unpack(self, archive: str, wanted: Set[str]) -> tuple[dict[str, str], dict[str, str]]:
        source, folder = self.root / archive, UnpackFolder(self.root / (archive + UNPACKED))
        state = source.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        members = folder.recorded(stamp)
        places = self._match(archive, members, wanted)
        refused: dict[str, str] = {}
        if not members or not all(folder.holds(name) for name in places.values()):
            members = []
            try:
                folder.make()
                for name in self._pass_over(archive, source, folder, wanted, refused):
                    members.append(name)
                folder.record(stamp, members)
            except ARCHIVE_DAMAGE as error:
                if isinstance(error, OSError) and error.errno in _UNWRITABLE:
                    rule = f"it cannot be unpacked into its own folder: {error.strerror}"
                    remedy = "free disk space there and allow writing, or unpack it by hand"
                    raise DataError("archive", archive, rule, remedy) from error
                self.damaged[archive] = str(error)
            places = self._match(archive, members, wanted)
        return {media: f"{archive}{UNPACKED}/{name}" for media, name in places.items()}, refused

    def _match(self, archive: str, members: Iterable[str], wanted: Set[str]) -> dict[str, str]:
        """Wanted media paths among the members, with their names on disk."""
        matches: dict[str, str] = {}
        guesses: dict[str, str] = {}
        for member in members:
            names = _member_names(member)
            for names_so, into in ((names[:1], matches), (names[1:], guesses)):
                for place in (place for name in names_so for place in self._places(archive, name)):
                    if place in wanted:
                        into.setdefault(place, disk_name(member))
        return {**guesses, **matches}

    def _pass_over(
        self,
        archive: str,
        source: Path,
        folder: UnpackFolder,
        wanted: Set[str],
        refused: dict[str, str],
    ) -> Iterator[str]:
        """Read a tar once; unpack wanted members that are not unpacked yet.

        Args:
            archive, source, folder, wanted: as in `_unpack`.
            refused: receives the reasons for wanted members that cannot be unpacked.

        Yields:
            The members that are unpacked or can be.
        """
        with tarfile.open(source, "r|*", encoding="utf-8", errors="surrogateescape") as opened:
            for info in opened:
                places = self._match(archive, [info.name], wanted)
                rule = _refused(info)
                if not rule and places and not folder.holds(disk_name(info.name)):
                    content = opened.extractfile(info)
                    assert content is not None, "a regular file has content"
                    rule = folder.write(disk_name(info.name), content)
                if not rule:
                    yield info.name
                else:
                    refused.update(dict.fromkeys(places, f"its member of {archive} {rule}"))


def _member_names(member: str) -> list[str]:
    """The possible readings of a tar member's name, the most likely first."""
    return [member] if member.isascii() else _decoded(member.encode("utf-8", "surrogateescape"))


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def disk_name(member: str) -> str:
    """The relative path that a tar member is unpacked to, without lone surrogates."""
    raw = member.encode("utf-8", "surrogateescape")
    return clean_member(member if _is_utf8(raw) else raw.decode("cp437"))


def _refused(info: tarfile.TarInfo) -> str:
    """The reason not to unpack a member, or ""."""
    if info.issym() or info.islnk():
        return "is a link, and links are not followed"
    if not info.isfile():
        return "is not a regular file"
    if ".." in info.name.replace("\\", "/").split("/"):
        return "leads out of the archive"
    if disk_name(info.name) == RECORD:
        return f"is called {RECORD}, the name of the index that unpacking writes"
    if info.size > _LARGEST_MEMBER:
        return f"has {info.size} bytes"
    return ""
