"""Checks that the benchmarks' data are complete; one error lists what is missing, with sizes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.data.check import time_limit_s
from sf.data.hub import HubSource, hub_errors, is_hub_failure, notes_folder, require_access
from sf.data.hub_cache import missing_files, note_whole, whole_folder
from sf.data.media import num_decoders
from sf.disk import require_room
from sf.errors import DataError
from sf.escaping import printable
from sf.evaluation.benchmarks import Benchmark, Task
from sf.evaluation.table_check import table_fault
from sf.evaluation.table_rows import each_row
from sf.evaluation.tasks import benchmark_home, build_task, repository_folder
from sf.isolation import Lost, run_isolated
from sf.redaction import without_credentials

__all__ = [
    *("Missing", "fetch_from_hub", "hf_home", "missing_in", "missing_in_hub_cache"),
    *("refuse", "snapshot"),
]

_TABLES = (".json", ".jsonl", ".csv", ".arrow")  # other formats that datasets reads
_SHOWN = 3  # names of missing videos in a message


@dataclass(frozen=True)
class Missing:
    """A missing part of a benchmark's data.

    Attributes:
        benchmark: the benchmark's name.
        what: description.
        repository: its source on the hub.
        gib: estimated download size (`Benchmark.download_gib`).
    """

    benchmark: str
    what: str
    repository: str
    gib: float

    def line(self) -> str:
        """One line of the message."""
        return f"  {self.benchmark}: {self.what} (hub: {self.repository}, perhaps {self.gib:g} GiB)"


def refuse(source: str, missing: Sequence[Missing], remedy: str) -> None:
    """Raise one error for everything that is missing, if anything is.

    Raises:
        DataError: something is missing.
    """
    if missing:
        size = sum({item.repository: item.gib for item in missing}.values())
        lines = list(dict.fromkeys(item.line() for item in missing))  # tasks may share a repository
        number = f"{len(lines)} things are" if len(lines) > 1 else "1 thing is"
        head = f"{number} missing, perhaps {size:.1f} GiB in all (sizes are rough guesses):"
        raise DataError("benchmarks.source", source, "\n".join([head, *lines]), f"\n{remedy}")


def missing_in(home: Path, benchmarks: Sequence[Benchmark], cache: Path) -> list[Missing]:
    """The missing repositories, rows, folders and videos of a benchmark home.

    Args:
        home: the benchmark home (`sf.evaluation.tasks`).
        benchmarks: the benchmarks to evaluate.
        cache: scratch folder for Arrow files.
    """
    absent = []
    with benchmark_home(home, cache):
        for benchmark in benchmarks:
            for task in benchmark.tasks:
                what = _lacks(home, task)
                if what:
                    absent.append(
                        Missing(benchmark.name, what, task.repository, benchmark.download_gib)
                    )
    return absent


def _lacks(home: Path, task: Task) -> str:
    """A description of the data missing for one task, or ''."""
    what = _bad_parquet(repository_folder(home, task))
    if what:
        return what
    media = home / task.media
    for folder in (media, *(media / name for name in task.media_folders)):
        if task.media and not folder.is_dir():
            return f"no folder {folder.resolve()}"
    try:
        lmms_task = build_task(task, home)
    except DataError as error:
        return str(error)
    return _absent_videos(task, lmms_task) if task.media else ""


def _bad_parquet(folder: Path) -> str:
    """The fault of a dataset's files, read in worker processes, or ''."""
    folder = folder.resolve()
    files = sorted(folder.rglob("*.parquet"))
    others = (path for path in folder.rglob("*") if path.suffix in _TABLES)
    if not files and not any(others):
        return f"no parquet file in {folder}"
    calls = [(str(file),) for file in files]
    limits = [time_limit_s(file) for file in files]
    for at, fault in run_isolated(table_fault, calls, limits, workers=num_decoders()):
        if fault:
            reason = f"cannot be read ({fault.reason})" if isinstance(fault, Lost) else fault
            return f"{files[at]} {reason}"
    return ""


def _absent_videos(task: Task, lmms_task: Any) -> str:
    absent = []
    for _, row in each_row(lmms_task.eval_docs_no_media):
        if isinstance(row, str):  # `readable.unreadable_rows` names it
            continue
        try:
            lmms_task.doc_to_visual(row)
        except SystemExit as error:  # raised by task modules for a missing video
            path = str(error).removeprefix("video path:").split(" does not exist")[0]
            # A NUL is in no file name, and functions for paths raise on it.
            absent.append(printable(path if "\0" in path else os.path.realpath(path)))
        except Exception:  # noqa: BLE001 - a bad row: `readable.unreadable_rows` names it
            continue
    if not absent:
        return ""
    more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    return f"{len(absent)} videos of {task.name}: {', '.join(absent[:_SHOWN])}{more}"


def hf_home() -> Path:
    """HF_HOME, where task modules expect videos."""
    return Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")))


def snapshot(repository: str, commit: str | None) -> Path | None:
    """The folder of a completely fetched dataset repository; downloads nothing.

    Args:
        repository: its name.
        commit: None for that of the main branch when it was fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if commit is None:
        try:
            folder = snapshot_download(repository, repo_type="dataset", local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        commit = Path(folder).name
    return whole_folder(repository, commit)


def missing_in_hub_cache(
    benchmarks: Sequence[Benchmark], commits: Mapping[str, str]
) -> list[Missing]:
    """The data missing from the local hub cache and HF_HOME's media folders; downloads nothing.

    Args:
        benchmarks: the benchmarks to evaluate.
        commits: of the repositories, if known.
    """
    absent = []
    for benchmark in benchmarks:
        for task in {task.repository: task for task in benchmark.tasks}.values():
            what = ""
            if snapshot(task.repository, commits.get(task.repository)) is None:
                what = "not whole in the hub cache"
            if task.media and not (hf_home() / task.media).is_dir():
                what = f"no folder {hf_home() / task.media}"
            if what:
                absent.append(
                    Missing(benchmark.name, what, task.repository, benchmark.download_gib)
                )
    return absent


def fetch_from_hub(
    benchmarks: Sequence[Benchmark],
    missing: Sequence[Missing],
    commits: Mapping[str, str],
    cache: Path,
) -> dict[str, str]:
    """Download missing data, and unpack videos through lmms-eval's tasks.

    The downloads and their sizes on the hub are announced on stderr beforehand.

    Args:
        benchmarks: the benchmarks to evaluate.
        missing: from `missing_in_hub_cache`.
        commits: of the repositories, if known.
        cache: folder for Arrow files.

    Returns:
        The commit of each repository that was fetched.

    Raises:
        DataError: the hub cannot be reached; everything that is missing is listed.
        EnvironmentFault: a repository is gated and HF_TOKEN gives no access, a download fails, or
            the disk of HF_HOME lacks space for the files and their unpacked contents.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if not missing:
        return {}
    infos = {}
    try:
        for name in sorted({item.repository for item in missing}):
            infos[name] = HfApi().dataset_info(
                name, revision=commits.get(name), files_metadata=True, timeout=20
            )
    except Exception as error:
        if not (isinstance(error, OSError) or is_hub_failure(error)):
            raise
        hub = without_credentials(constants.ENDPOINT)
        remedy = (
            f"the hub cannot be reached ({type(error).__name__}): bring the files here, or check "
            f"the network, HF_ENDPOINT ({hub}) and HF_TOKEN, and run the stage fetch again"
        )
        refuse("hub", missing, remedy)
    require_access(infos)
    sizes = {
        name: {file.rfilename: file.size or 0 for file in info.siblings or ()}
        for name, info in infos.items()
    }
    fetched = {name: str(info.sha) for name, info in infos.items()}
    _announce(sizes, fetched)
    tasks = [task for benchmark in benchmarks for task in benchmark.tasks if task.media]
    for name, commit in fetched.items():
        with hub_errors("benchmarks.source", HubSource(name, commit)):
            folder = Path(snapshot_download(name, repo_type="dataset", revision=commit))
        with benchmark_home(None, cache):
            for task in (task for task in tasks if task.repository == name):
                _unpack(task, commit)
        note_whole(name, commit, folder, sizes[name])
    return fetched


def _announce(sizes: Mapping[str, Mapping[str, int]], commits: Mapping[str, str]) -> None:
    """Announce the downloads, and check the disk space for them and their unpacked contents."""
    missing = {
        name: sum(missing_files(name, commits[name], files).values())
        for name, files in sizes.items()
    }
    total = sum(missing.values())
    lines = [f"  {repository}: {size / 2**30:.1f} GiB" for repository, size in missing.items()]
    head = f"to be downloaded, {total / 2**30:.1f} GiB:"
    print("\n".join([head, *lines]), file=sys.stderr, flush=True)
    unpacked = sum(sum(files.values()) for files in sizes.values())
    what = f"{total / 2**30:.0f} GiB to be downloaded and at most as much as the repositories' "
    what += f"{unpacked / 2**30:.0f} GiB unpacked"
    require_room(hf_home(), total + unpacked, what, "set HF_HOME to a larger disk")


def _unpack(task: Task, commit: str) -> None:
    """Have lmms-eval unpack a task's videos, which it does if their folder is missing.

    A partly unpacked folder of a killed call is removed first.
    """
    folder = hf_home() / task.media
    begun = notes_folder(task.repository) / f"unpacking-{task.media.replace('/', '-')}"
    if begun.exists() and folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    if not folder.exists():
        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.touch()
    build_task(task, None, revision=commit)
    begun.unlink(missing_ok=True)
