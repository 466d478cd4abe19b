"""Whether the benchmarks' data are there: all that is missing is said at once, with sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sf.errors import DataError, EnvironmentFault
from sf.evaluation.columns import Column, Part
from sf.evaluation.tasks import benchmark_home, build_task, repository_folder

__all__ = ["Missing", "fetch_from_hub", "missing_in_folder", "missing_in_hub_cache", "refuse"]

_SHOWN = 3  # names of missing videos in a message


@dataclass(frozen=True)
class Missing:
    """Something that a column needs and that is not there.

    Attributes:
        column: the column's name.
        what: what is missing.
        repository: where it comes from on the hub.
        gib: how much is to be downloaded for it, guessed (`Column.download_gib`).
    """

    column: str
    what: str
    repository: str
    gib: float

    def line(self) -> str:
        """One line of the message."""
        return f"  {self.column}: {self.what} (hub: {self.repository}, perhaps {self.gib:g} GiB)"


def refuse(source: str, missing: Sequence[Missing], remedy: str) -> None:
    """Say everything that is missing in one error; do nothing when nothing is.

    Raises:
        DataError: something is missing.
    """
    if missing:
        size = sum({item.repository: item.gib for item in missing}.values())
        lines = "\n".join(item.line() for item in missing)
        rule = (
            f"{len(missing)} things are missing, perhaps {size:.1f} GiB in all (sizes are rough "
            f"guesses):\n{lines}\n"
        )
        raise DataError("benchmark_source", source, rule, remedy)


def missing_in_folder(home: Path, columns: Sequence[Column], cache: Path) -> list[Missing]:
    """What a benchmark home lacks: repositories, rows, media folders, single videos.

    Args:
        home: the benchmark home (`sf.evaluation.tasks`).
        columns: what is to be evaluated.
        cache: scratch for Arrow files.
    """
    found = []
    with benchmark_home(home, cache):
        for column in columns:
            for part in column.parts:
                what = _lacks(home, part)
                if what:
                    found.append(Missing(column.name, what, part.repository, column.download_gib))
    return found


def _lacks(home: Path, part: Part) -> str:
    """What is missing for one task, in words; '' for nothing."""
    folder = repository_folder(home, part)
    if not any(folder.rglob("*.parquet")):
        return f"no parquet file in {folder}"
    if not part.media:
        return ""
    media = home / part.media
    if not media.is_dir():
        return f"no folder {media}"
    task = build_task(part, home)
    absent = []
    for row in task.eval_docs_no_media:
        try:
            task.doc_to_visual(row)
        except SystemExit as error:  # how task modules say that a video is missing
            absent.append(str(error).removeprefix("video path:").split(" does not exist")[0])
    if not absent:
        return ""
    more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    return f"{len(absent)} videos of {part.task}: {', '.join(absent[:_SHOWN])}{more}"


def missing_in_hub_cache(columns: Sequence[Column]) -> list[Missing]:
    """What the local hub cache and HF_HOME's media folders lack; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    home = Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")))
    found = []
    for column in columns:
        for part in {part.repository: part for part in column.parts}.values():
            what = ""
            try:
                snapshot_download(part.repository, repo_type="dataset", local_files_only=True)
            except LocalEntryNotFoundError:
                what = "not in the hub cache"
            if part.media and not (home / part.media).is_dir():
                what = f"no folder {home / part.media}"
            if what:
                found.append(Missing(column.name, what, part.repository, column.download_gib))
    return found


def fetch_from_hub(columns: Sequence[Column], missing: Sequence[Missing], cache: Path) -> None:
    """Download what is missing through lmms-eval's own tasks (which also unpack the videos).

    Args:
        columns: what is to be evaluated.
        missing: from `missing_in_hub_cache`.
        cache: folder for Arrow files.

    Raises:
        DataError: the hub cannot be reached; everything that is missing is listed.
        EnvironmentFault: the disk has no room for twice the size (archives and what is in them).
    """
    import shutil

    import requests
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not missing:
        return
    gib = 0.0
    try:
        for repository in sorted({item.repository for item in missing}):
            info = HfApi().dataset_info(repository, files_metadata=True, timeout=20)
            gib += sum(file.size or 0 for file in info.siblings or []) / 2**30
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled, requests.RequestException) as error:
        remedy = f"the hub cannot be reached ({type(error).__name__}): bring the files here"
        refuse("hub", missing, remedy)
    free = shutil.disk_usage(cache).free / 2**30
    if free < 2 * gib:
        rule = f"{gib:.0f} GiB are to be downloaded and unpacked: {2 * gib:.0f} GiB are needed"
        raise EnvironmentFault("free disk space", f"{free:.0f} GiB", rule, "free some space")
    wanted = {item.column for item in missing}
    with benchmark_home(None, cache):
        for part in (part for c in columns if c.name in wanted for part in c.parts):
            build_task(part, None)
