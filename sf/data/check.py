"""The media pass: opens every image and video once, in parallel, and records the results.

Media are opened in separate processes (`sf.isolation`): a file that crashes its decoder or never
finishes decoding is merely one unusable file. Results are appended to a log as they arrive, so a
killed pass continues where it stopped. An entry is valid while the file's size, its modification
time and the frame rules are unchanged. The next call opens unusable files again: an unresponsive
file system or a missing permission is not a property of the file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.data.budget import visual_tokens
from sf.data.manifest import Row
from sf.data.media import media_size, num_decoders
from sf.data.media_facts import FOUND, MediaFacts, media_key
from sf.data.schema import RowError
from sf.errors import DataError
from sf.isolation import Lost, run_isolated
from sf.json_lines import append_json_lines, read_json_lines
from sf.progress import progress

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = ["MediaLog", "apply_facts", "check_media", "media_faults"]

TIME_LIMIT_S = 120.0
_BYTES_PER_S = 2**20  # a larger file may take longer, at this rate
_FLUSH_EVERY = 64


class MediaLog:
    """Facts in a JSONL file.

    Args:
        path: the file; created with the first entry.
        earlier: a log to reuse facts from, such as that of a result with other parameters.
    """

    def __init__(self, path: Path, earlier: Path | None = None) -> None:
        self.path = path
        self.facts: dict[tuple[str, str], MediaFacts] = {}
        self.earlier = dict(MediaLog(earlier).facts) if earlier and earlier.is_file() else {}
        if path.is_file():
            for facts in read_json_lines(path, _facts_of):
                if facts is not None:
                    self.facts[facts.media, facts.data_type] = facts

    def known(self, media: str, data_type: str, key: str) -> bool:
        """Whether this or the earlier log has facts with this key and without an error."""
        pair = media, data_type
        return any(
            pair in facts and facts[pair].key == key and not facts[pair].error
            for facts in (self.facts, self.earlier)
        )

    def take_over(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy the facts that only the earlier log contains."""
        self.add(
            self.earlier[pair]
            for pair in pairs
            if pair in self.earlier and self.facts.get(pair) != self.earlier[pair]
        )

    def add(self, batch: Iterable[MediaFacts]) -> None:
        """Append facts; the operating system has them when this returns."""
        batch = list(batch)
        self.facts.update({(facts.media, facts.data_type): facts for facts in batch})
        append_json_lines(self.path, map(asdict, batch))


def _facts_of(fields: dict[str, Any]) -> MediaFacts | None:
    """Facts of a log line; None for a line of another version."""
    try:
        return MediaFacts(**fields)
    except TypeError:
        return None


def time_limit_s(path: Path) -> float:
    """Time limit for a file, by its size; generous, since the machine may be busy."""
    try:
        return TIME_LIMIT_S + media_size(path) / _BYTES_PER_S
    except DataError:
        return TIME_LIMIT_S


def _in_parallel(
    root: Path, todo: Sequence[tuple[str, str]], visions: Sequence[Vision], workers: int
) -> Iterator[MediaFacts]:
    from sf.data import inspection  # loads the decoders

    calls = [(root, media, data_type, *visions) for media, data_type in todo]
    seconds = [time_limit_s(root / media) for media, _ in todo]
    for index, facts in run_isolated(inspection.inspect, calls, seconds, workers=workers):
        if isinstance(facts, Lost):
            key = media_key(root, *todo[index], *visions)
            yield MediaFacts(*todo[index], key, error=facts.reason)
        else:
            yield facts


def media_faults(media: Sequence[tuple[Path | str, str]], vision: Vision) -> list[str]:
    """The reason why each image or video is unusable, "" for usable ones; nothing is recorded.

    Args:
        media: paths, with "image" or "video".
        vision: pixel and frame bounds.
    """
    todo = [(str(Path(path).absolute()), data_type) for path, data_type in media]
    facts = _in_parallel(Path("/"), list(dict.fromkeys(todo)), [vision], num_decoders())
    errors = {(each.media, each.data_type): each.error for each in facts}
    return [errors[pair] for pair in todo]


def check_media(
    root: Path,
    media: Iterable[tuple[str, str]],
    visions: Sequence[Vision],
    log: MediaLog,
    workers: int,
) -> dict[tuple[str, str], MediaFacts]:
    """Facts of media; opens only the media missing from the log.

    Args:
        root: the data root.
        media: references below it, with "image" or "video"; duplicates count once.
        visions: pixel and frame bounds; the frames for each of them are decoded.
        log: results of earlier calls.
        workers: number of decoding processes.

    Returns:
        Facts by media reference and media type.
    """
    needed = list(dict.fromkeys(media))
    todo = [
        (media, data_type)
        for media, data_type in needed
        if not log.known(media, data_type, media_key(root, media, data_type, *visions))
    ]
    log.take_over(set(needed).difference(todo))
    began = time.monotonic()
    with progress("media", len(needed), len(needed) - len(todo)) as bar:
        batch: list[MediaFacts] = []
        for number, facts in enumerate(_in_parallel(root, todo, visions, workers), start=1):
            batch.append(facts)
            if len(batch) == _FLUSH_EVERY or number == len(todo):
                log.add(batch)
                rate = number / max(time.monotonic() - began, 1e-6)
                bar.advance(len(batch), f"{rate:.0f} media/s")
                batch = []
    return {pair: log.facts[pair] for pair in needed}


def apply_facts(
    rows: Sequence[Row], facts: dict[tuple[str, str], MediaFacts], vision: Vision
) -> tuple[list[Row], dict[str, RowError]]:
    """Fill in media facts and visual tokens.

    Returns:
        Rows with usable media, and the faults of the others by row id.
    """
    good: list[Row] = []
    faults: dict[str, RowError] = {}
    for row in rows:
        entry = facts[row.media, row.data_type]
        if entry.error:
            faults[row.id] = RowError("unreadable media", "path", row.media, entry.error)
            continue
        values: dict[str, Any] = {name: getattr(entry, name) for name in FOUND}
        tokens = visual_tokens(
            row.data_type, entry.width, entry.height, entry.num_frames, entry.fps or 1.0, vision
        )
        good.append(replace(row, **values, visual_tokens=tokens))
    return good, faults
