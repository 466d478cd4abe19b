"""From a row's media path to an existing file or archive member inside the data root."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sf.data.archives import ArchiveIndex
from sf.data.manifest import Row
from sf.data.schema import RowError

__all__ = ["Located", "MediaRoot", "locate_rows"]


@dataclass(frozen=True, slots=True)
class Located:
    """Rows whose media exist, and the faults of the others by row id."""

    rows: list[Row]
    faults: dict[str, RowError]


class MediaRoot:
    """The folder that media paths are relative to.

    Args:
        root: the data root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = os.path.realpath(root)
        self._folders: dict[str, str] = {}  # folder -> real path

    @cached_property
    def archives(self) -> ArchiveIndex:
        """The archives below the root; indexed at the first media path that is not a file."""
        return ArchiveIndex(self.root)

    def _inside(self, real: str) -> bool:
        return real == self._real_root or real.startswith(self._real_root + os.sep)

    def on_disk(self, media: str) -> str | None:
        """The path of a file below the root; its Unicode form may differ from the row's.

        Raises:
            RowError: a symbolic link leads out of the root, or the file is empty or not regular.
        """
        forms = [media]
        if not media.isascii():
            forms += [unicodedata.normalize(form, media) for form in ("NFC", "NFD")]
        return next((form for form in forms if self._is_file(form)), None)

    def _is_file(self, media: str) -> bool:
        path = os.path.join(self.root, media)
        try:
            state = os.lstat(path)
        except OSError:
            return False
        folder = os.path.dirname(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = os.path.realpath(folder)
        linked = stat.S_ISLNK(state.st_mode)
        if not self._inside(real) or (linked and not self._inside(os.path.realpath(path))):
            raise RowError("symbolic link", "path", media, "it must not lead out of the data root")
        if linked:
            try:
                state = os.stat(path)
            except OSError:
                return False
        if not stat.S_ISREG(state.st_mode):
            raise RowError("no file", "path", media, "it must be a regular file")
        if state.st_size == 0:
            raise RowError("empty media", "path", media, "the file is empty (0 bytes)")
        return True


def locate_rows(rows: Sequence[Row], root: MediaRoot) -> Located:
    """Find the media of all rows on disk or in archives; opens only archives.

    Args:
        rows: with `media` as in the source.
        root: the data root.

    Returns:
        Rows with `media` as a reference for `sf.data.media.open_media`, relative to the root.
    """
    references: dict[str, str | RowError] = {}
    pending: list[str] = []
    for media in dict.fromkeys(row.media for row in rows):
        try:
            path = root.on_disk(media)
        except RowError as error:
            references[media] = error
            continue
        if path is not None:
            references[media] = path
        else:
            pending.append(media)
    if pending:
        references.update(_in_archives(pending, root))
    good, faults = [], {}
    for row in rows:
        reference = references[row.media]
        if isinstance(reference, RowError):
            faults[row.id] = reference
        else:
            good.append(row if reference == row.media else replace(row, media=reference))
    return Located(good, faults)


def _in_archives(pending: Sequence[str], root: MediaRoot) -> dict[str, str | RowError]:
    archives = root.archives
    places: dict[str, str | RowError] = {}
    for media in pending:
        reference = archives.find(media)
        if reference is not None and archives.size(reference) == 0:
            rule = "the archive member is empty (0 bytes)"
            places[media] = RowError("empty media", "path", media, rule)
        elif reference is not None:
            places[media] = reference
    left = [media for media in pending if media not in places]
    unpacked, refused = archives.unpack_tars(left)
    places.update(unpacked)
    for media in left:
        if media in places:
            continue
        if media in refused:
            places[media] = RowError("unsafe archive member", "path", media, refused[media])
        else:
            rule = f"there is no such file or archive member below {root.root.name}/"
            damaged = (f"{name} ({why})" for name, why in archives.damaged.items())
            unread = f"; damaged archives: {', '.join(damaged)}" if archives.damaged else ""
            places[media] = RowError("missing media", "path", media, rule + unread)
    return places
