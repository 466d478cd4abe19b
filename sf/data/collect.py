"""Annotation files -> validated, deduplicated rows, and each rejected row with its reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.data import llava_video
from sf.data.json_rows import RawRow
from sf.data.manifest import Row
from sf.data.own_rows import is_own_record, own_record, read_table
from sf.data.schema import RowError, parse_record
from sf.errors import DataError
from sf.progress import progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ANNOTATIONS",
    "Collected",
    "Reject",
    "annotation_files",
    "collect",
    "refuse_many",
    "reject_table",
]

ANNOTATIONS = "Video-R1-260k.json"
_PUNCTUATION = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected row.

    Attributes:
        file: annotation file, relative to the data root.
        number: of the row in the file, from 1.
        id: the row's id, if it has one.
        kind: class of the reason.
        reason: the fault.
        media: the row's media path, if it has one.
    """

    file: str
    number: int
    id: str
    kind: str
    reason: str
    media: str


@dataclass(slots=True)
class Collected:
    """The rows collected so far, and the rejected ones.

    Attributes:
        rows: usable rows in the order of the files.
        rejects: the others, with reasons.
        num_read: rows read, used or not.
        num_unselected: rows of data sources that were not selected.
        origins: file and number of a row by its id.
        groups: by row id, the group that the split keeps together: the media path in the source
            or, once media were opened, the digest of their bytes.
        num_copies: media files that are copies of another file, if media were opened.
    """

    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    num_read: int = 0
    num_unselected: int = 0
    origins: dict[str, tuple[str, int]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    num_copies: int = 0

    def drop(self, faults: dict[str, RowError], rows: list[Row]) -> None:
        """Keep `rows`; those in `faults` become rejects."""
        media = {row.id: row.media for row in self.rows if row.id in faults}
        for identity, error in faults.items():
            file, number = self.origins[identity]
            reason = f"{error.value}: {error.rule}" if error.value else error.rule
            self.rejects.append(Reject(file, number, identity, error.kind, reason, media[identity]))
        self.rows = rows

    def kinds(self) -> Counter[str]:
        """Number of rejects by kind."""
        return Counter(reject.kind for reject in self.rejects)


def annotation_files(root: Path) -> list[Path]:
    """The annotation files of a data root, in a fixed order.

    Args:
        root: a folder with `Video-R1-260k.json`, in LLaVA-Video-178K's layout
            (`*/*_processed.json`), or with both; or an annotation file.

    Raises:
        DataError: there is none.
    """
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError("source", str(root), "there is no such folder", "correct prepare.source")
    files = [root / ANNOTATIONS] if (root / ANNOTATIONS).is_file() else []
    files += sorted(path for path in root.glob("**/*_processed.json") if path.is_file())
    if not files:
        rule = f"it contains neither {ANNOTATIONS} nor */*_processed.json"
        raise DataError("source", str(root), rule, "correct prepare.source")
    return files


def _records(raw: RawRow, file: str, folder: str) -> Iterator[dict[str, Any] | Any]:
    if llava_video.is_llava_record(raw.value):
        yield from llava_video.records(raw.value, folder)
    elif not file.endswith(ANNOTATIONS) and is_own_record(raw.value):
        yield own_record(raw.value, raw.number, file.rpartition("/")[2].partition(".")[0])
    else:
        yield raw.value


def _content(row: Row) -> tuple[object, ...]:
    """Equal for rows with the same question about the same media and the same answer."""
    texts = (row.problem, *row.options, row.answer)
    return (row.media, row.problem_type, *(_normal(text) for text in texts))


def _normal(text: str) -> str:
    return _PUNCTUATION.sub(" ", text.casefold()).strip() or text


def _known(record: Any, key: str) -> str:
    value = record.get(key, "") if isinstance(record, dict) else ""
    return str(value)[:200] if isinstance(value, str | int) else ""


class _Collector:
    def __init__(self, sources: Sequence[str]) -> None:
        self.collected = Collected()
        self._sources = frozenset(sources)
        self._alone: dict[str, Row] = {}  # media -> its only row so far
        self._contents: dict[tuple[object, ...], str] = {}  # of media with several rows -> row id

    def take(self, raw: RawRow, file: str, folder: str) -> None:
        """Validate one raw row, which may contain several questions."""
        if raw.kind:
            self.collected.num_read += 1
            reject = Reject(file, raw.number, "", raw.kind, raw.reason, "")
            self.collected.rejects.append(reject)
            return
        record = raw.value
        try:
            for record in _records(raw, file, folder):
                self.collected.num_read += 1
                self._one(record, file, raw.number)
        except RowError as error:  # an own row, or a LLaVA-Video record with unpaired turns
            self.collected.num_read += 1
            self._reject(record, file, raw.number, error)

    def _reject(self, record: Any, file: str, number: int, error: RowError) -> None:
        identity = _known(record, "problem_id") or _known(record, "id")
        media = _known(record, "path") or _known(record, "video")
        self.collected.rejects.append(Reject(file, number, identity, error.kind, str(error), media))

    def _one(self, record: Any, file: str, number: int) -> None:
        try:
            row = parse_record(record)
            if self._sources and not self._sources & row.data_sources:
                self.collected.num_unselected += 1
                return
            self._refuse_twice(row)
        except RowError as error:
            self._reject(record, file, number, error)
            return
        self.collected.rows.append(row)
        self.collected.origins[row.id] = (file, number)
        self.collected.groups[row.id] = row.media

    def _refuse_twice(self, row: Row) -> None:
        if row.id in self.collected.origins:
            file, number = self.collected.origins[row.id]
            rule = f"row {number} of {file} has the same"
            raise RowError("duplicate id", "problem_id", row.id, rule)
        other = self._alone.setdefault(row.media, row)
        if other is row:
            return
        self._contents.setdefault(_content(other), other.id)
        same = self._contents.setdefault(_content(row), row.id)
        if same != row.id:
            rule = f"row {same} asks the same question about the same media"
            raise RowError("duplicate question", "problem", row.problem[:80], rule)


def collect(files: Iterable[Path], root: Path, sources: Sequence[str] = ()) -> Collected:
    """Read and validate annotation files without opening media.

    Args:
        files: annotation files (`annotation_files`).
        root: the data root.
        sources: the wanted `data_source` values or top media folders; empty for all.

    Returns:
        Usable rows and rejects.

    Raises:
        DataError: a file cannot be read, or no file contains a row.
    """
    collector = _Collector(sources)
    for path in files:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        folder = path.parent.relative_to(root).as_posix() if path.is_relative_to(root) else ""
        try:
            with progress(name, path.stat().st_size) as bar:
                for raw in read_table(path):
                    collector.take(raw, name, folder)
                    if raw.number % 5000 == 0 and raw.offset:
                        bar.advance(raw.offset - bar.done, f"{raw.number} rows")
        except OSError as error:
            raise DataError("source", str(path), f"cannot be read: {error}", "check it") from error
    if not collector.collected.num_read:
        raise DataError(
            "source", str(root), "its annotation files contain no rows", "fetch them again"
        )
    return collector.collected


def reject_table(rejects: Iterable[Reject]) -> pd.DataFrame:
    """Every rejected row with its reason."""
    import pandas as pd

    names = ("file", "number", "id", "kind", "reason", "media")
    return pd.DataFrame(
        [[getattr(reject, name) for name in names] for reject in rejects], columns=list(names)
    )


def refuse_many(
    collected: Collected, most: float, where: Path, limit: str = "prepare.max_reject_share"
) -> None:
    """Stop when too large a share of the rows was rejected.

    Args:
        collected: rows and rejects.
        most: the largest share that may be rejected.
        where: the file with all reasons.
        limit: the parameter that sets `most`.

    Raises:
        DataError: with the share, the limit and the most common reasons.
    """
    share = len(collected.rejects) / collected.num_read
    if share <= most:
        if collected.rows:
            return
        rule = f"none of the {collected.num_read} rows read is usable"
        raise DataError("rows", 0, rule, "correct prepare.data_sources")
    common = ", ".join(f"{kind}: {count}" for kind, count in collected.kinds().most_common(3))
    first = f"first, row {collected.rejects[0].number}: {collected.rejects[0].reason}"
    raise DataError(
        "rejected rows",
        f"{len(collected.rejects)} of {collected.num_read}",
        f"at most a share of {most:g} may be rejected ({common}; {first})",
        f"correct the data (all reasons: {where}) or raise {limit}",
    )
