"""The media pass: opens every image and video once, in parallel, and remembers what it found.

Results are appended to a log as they come, so a killed pass goes on where it was; an unfinished
last line is dropped. An entry counts as long as size and modification time of its file are the same
and the same frames are looked at. What could not be used is opened again by the next call: a file
system that did not answer, or a missing permission, is no property of the file.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.data.budget import visual_tokens
from sf.data.manifest import Row
from sf.data.media import media_digest, split_reference
from sf.data.schema import RowError
from sf.errors import DataError
from sf.progress import progress

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = ["MediaFacts", "MediaLog", "apply_facts", "check_media", "inspect"]

FACTS = "upright, digest, times, gray"  # changes when the same file gives other facts
_AHEAD = 8  # media in flight for each worker: memory stays bounded
_FLUSH_EVERY = 64
_FOUND = ("width", "height", "num_frames", "fps", "duration_s", "codec")


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What one media file holds, or why it cannot be used.

    Attributes:
        media: reference below the data root.
        data_type: "image" or "video".
        key: size and modification time of the file, the frame rule and `FACTS`.
        width, height, num_frames, fps, duration_s, codec: see `sf.data.manifest.Row`.
        digest: of the file's bytes; equal for copies under other names. "" if it cannot be used.
        error: "" or the reason.
    """

    media: str
    data_type: str
    key: str
    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: float = 0.0
    duration_s: float = 0.0
    codec: str = ""
    digest: str = ""
    error: str = ""


class MediaLog:
    """Facts in a JSONL file.

    Args:
        path: the file; created with the first entry.
        earlier: a log whose facts are taken over, such as that of a result with other parameters.
    """

    def __init__(self, path: Path, earlier: Path | None = None) -> None:
        self.path = path
        self.facts: dict[tuple[str, str], MediaFacts] = {}
        self.earlier = dict(MediaLog(earlier).facts) if earlier and earlier.is_file() else {}
        if path.is_file():
            whole = self._read()
            if whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)

    def _read(self) -> int:
        """Take in all whole lines; returns where they end."""
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    facts = MediaFacts(**json.loads(line))
                except (ValueError, TypeError):
                    break  # cut by a kill; what follows is checked again
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self.facts[facts.media, facts.data_type] = facts
        return whole

    def known(self, media: str, data_type: str, key: str) -> bool:
        """Whether facts with this key are there, no error; the earlier log's are copied over."""
        pair = media, data_type
        here = self.facts.get(pair)
        if here is not None and here.key == key and not here.error:
            return True
        before = self.earlier.get(pair)
        if before is not None and before.key == key and not before.error:
            self.add([before])
            return True
        return False

    def add(self, batch: Iterable[MediaFacts]) -> None:
        """Append facts; they are with the operating system when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            for facts in batch:
                self.facts[facts.media, facts.data_type] = facts
                file.write(json.dumps(asdict(facts)) + "\n")


def media_key(root: Path, media: str, data_type: str, vision: Vision) -> str:
    """Changes when the file changes, or when other frames of it are looked at."""
    state = os.stat(split_reference(root / media)[0])
    rule = f" {vision.video_fps:g}/{vision.video_max_frames}" if data_type == "video" else ""
    return f"{state.st_size} {state.st_mtime_ns}{rule} {FACTS}"


def inspect(root: Path, media: str, data_type: str, vision: Vision) -> MediaFacts:
    """Open one image or video and decode what a model will look at.

    Returns:
        Its facts; an unusable one has `error` set.
    """
    from sf.data.images import load_image_and_format
    from sf.data.video import check_video

    key = media_key(root, media, data_type, vision)
    path = str(root / media)
    try:
        if data_type == "image":
            image, codec = load_image_and_format(path)
            size = {"width": image.width, "height": image.height}
            found: dict[str, Any] = {**size, "num_frames": 1, "codec": codec}
        else:
            video = check_video(path, vision)
            found = {name: getattr(video, name) for name in _FOUND}
        facts = MediaFacts(media, data_type, key, **found, digest=media_digest(path))
        visual_tokens(
            data_type, facts.width, facts.height, facts.num_frames, facts.fps or 1.0, vision
        )
    except DataError as error:
        return MediaFacts(media, data_type, key, error=error.rule)
    return facts


def _in_parallel(
    root: Path, todo: Sequence[tuple[str, str]], vision: Vision, workers: int
) -> Iterator[MediaFacts]:
    with ThreadPoolExecutor(workers) as pool:
        flying: deque[Future[MediaFacts]] = deque()
        for media, data_type in todo:
            flying.append(pool.submit(inspect, root, media, data_type, vision))
            if len(flying) >= workers * _AHEAD:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()


def check_media(
    root: Path, rows: Sequence[Row], vision: Vision, log: MediaLog, workers: int
) -> dict[tuple[str, str], MediaFacts]:
    """Facts of the media of all rows; only what the log does not hold is opened.

    Args:
        root: the data root.
        rows: located rows.
        vision: pixel and frame bounds.
        log: what earlier calls found.
        workers: threads that decode (PIL and PyAV let other threads run meanwhile).

    Returns:
        Facts by media reference and media type.
    """
    needed = list(dict.fromkeys((row.media, row.data_type) for row in rows))
    todo = [
        (media, data_type)
        for media, data_type in needed
        if not log.known(media, data_type, media_key(root, media, data_type, vision))
    ]
    began = time.monotonic()
    with progress("media", len(needed), len(needed) - len(todo)) as bar:
        batch: list[MediaFacts] = []
        for number, facts in enumerate(_in_parallel(root, todo, vision, workers), start=1):
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
        Rows whose media can be used, and the faults of the others by row id.
    """
    good: list[Row] = []
    faults: dict[str, RowError] = {}
    for row in rows:
        found = facts[row.media, row.data_type]
        if found.error:
            faults[row.id] = RowError("unreadable media", "path", row.media, found.error)
            continue
        values: dict[str, Any] = {name: getattr(found, name) for name in _FOUND}
        tokens = visual_tokens(
            row.data_type, found.width, found.height, found.num_frames, found.fps or 1.0, vision
        )
        good.append(replace(row, **values, visual_tokens=tokens))
    return good, faults
