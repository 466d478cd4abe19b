"""Checks that the benchmarks' data are complete; one error lists what is missing, with sizes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.data.check import time_limit_s
from sf.data.hub import is_hub_failure
from sf.data.media import num_decoders
from sf.errors import DataError, EnvironmentFault
from sf.evaluation.benchmarks import Benchmark, Task
from sf.evaluation.table_check import table_fault
from sf.evaluation.tasks import benchmark_home, build_task, repository_folder
from sf.isolation import Lost, run_isolated

__all__ = ["Missing", "fetch_from_hub", "missing_in", "missing_in_hub_cache", "refuse"]

_SHOWN = 3  # names of missing videos in a message


@dataclass(frozen=True)
class Missing:
    """Something that a benchmark needs and that is not there.

    Attributes:
        benchmark: the benchmark's name.
        what: what is missing.
        repository: where it comes from on the hub.
        gib: how much is to be downloaded for it, guessed (`Benchmark.download_gib`).
    """

    benchmark: str
    what: str
    repository: str
    gib: float

    def line(self) -> str:
        """One line of the message."""
        return f"  {self.benchmark}: {self.what} (hub: {self.repository}, perhaps {self.gib:g} GiB)"


def refuse(source: str, missing: Sequence[Missing], remedy: str) -> None:
    """Say everything that is missing in one error; do nothing when nothing is.

    Raises:
        DataError: something is missing.
    """
    if missing:
        size = sum({item.repository: item.gib for item in missing}.values())
        lines = list(dict.fromkeys(item.line() for item in missing))  # tasks may share a repository
        number = f"{len(lines)} things are" if len(lines) > 1 else "1 thing is"
        head = f"{number} missing, perhaps {size:.1f} GiB in all (sizes are rough guesses):"
        raise DataError("benchmarks.source", source, "\n".join([head, *lines]), f"\n{remedy}")


def missing_in(home: Path | None, benchmarks: Sequence[Benchmark], cache: Path) -> list[Missing]:
    """What is lacking where the data should be complete: repositories, rows, folders, videos.

    Args:
        home: the benchmark home (`sf.evaluation.tasks`); None for what was fetched from the hub.
        benchmarks: what is to be evaluated.
        cache: scratch for Arrow files.
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


def _lacks(home: Path | None, task: Task) -> str:
    """What is missing for one task, in words; '' for nothing."""
    what = "" if home is None else _bad_parquet(repository_folder(home, task))
    if what:
        return what
    media = (home or _hub_home()) / task.media
    for folder in (media, *(media / name for name in task.media_folders)):
        if task.media and not folder.is_dir():
            return f"no folder {folder}"
    try:
        lmms_task = build_task(task, home)
    except DataError as error:
        return str(error)
    return _absent_videos(task, lmms_task) if task.media else ""


def _bad_parquet(folder: Path) -> str:
    """What is wrong with a dataset's files, read in worker processes."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
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
    for row in lmms_task.eval_docs_no_media:
        try:
            lmms_task.doc_to_visual(row)
        except SystemExit as error:  # how task modules say that a video is missing
            absent.append(str(error).removeprefix("video path:").split(" does not exist")[0])
        except Exception:  # noqa: BLE001 - a bad row: `readable.unreadable_rows` names it
            continue
    if not absent:
        return ""
    more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    return f"{len(absent)} videos of {task.name}: {', '.join(absent[:_SHOWN])}{more}"


def _free_gib(folder: Path) -> float:
    """Room on the disk of a folder, which need not be there yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free / 2**30


def _hub_home() -> Path:
    return Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")))


def missing_in_hub_cache(benchmarks: Sequence[Benchmark]) -> list[Missing]:
    """What the local hub cache and HF_HOME's media folders lack; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    absent = []
    for benchmark in benchmarks:
        for task in {task.repository: task for task in benchmark.tasks}.values():
            what = ""
            try:
                snapshot_download(task.repository, repo_type="dataset", local_files_only=True)
            except LocalEntryNotFoundError:
                what = "not in the hub cache"
            if task.media and not (_hub_home() / task.media).is_dir():
                what = f"no folder {_hub_home() / task.media}"
            if what:
                absent.append(
                    Missing(benchmark.name, what, task.repository, benchmark.download_gib)
                )
    return absent


def fetch_from_hub(
    benchmarks: Sequence[Benchmark], missing: Sequence[Missing], cache: Path
) -> None:
    """Download what is missing through lmms-eval's own tasks (which also unpack the videos).

    What is fetched, and the hub's own sizes, are said on stderr before the first byte.

    Args:
        benchmarks: what is to be evaluated.
        missing: from `missing_in_hub_cache`.
        cache: folder for Arrow files.

    Raises:
        DataError: the hub cannot be reached; everything that is missing is listed.
        EnvironmentFault: the disk of HF_HOME has no room for twice the size (archives and what
            is in them).
    """
    from huggingface_hub import HfApi

    if not missing:
        return
    sizes = {}
    try:
        for repository in sorted({item.repository for item in missing}):
            info = HfApi().dataset_info(repository, files_metadata=True, timeout=20)
            sizes[repository] = sum(file.size or 0 for file in info.siblings or []) / 2**30
    except Exception as error:
        if not (isinstance(error, OSError) or is_hub_failure(error)):
            raise
        remedy = f"the hub cannot be reached ({type(error).__name__}): bring the files here"
        refuse("hub", missing, remedy)
    gib, free = sum(sizes.values()), _free_gib(_hub_home())
    lines = [f"  {repository}: {size:.1f} GiB" for repository, size in sizes.items()]
    print("\n".join([f"to be downloaded, {gib:.1f} GiB:", *lines]), file=sys.stderr, flush=True)
    if free < 2 * gib:
        rule = f"{gib:.0f} GiB are to be downloaded and unpacked: {2 * gib:.0f} GiB are needed"
        remedy = "free some space, or set HF_HOME to a larger disk"
        raise EnvironmentFault(f"free space of {_hub_home()}", f"{free:.0f} GiB", rule, remedy)
    wanted = {item.benchmark for item in missing}
    with benchmark_home(None, cache):
        for task in (task for b in benchmarks if b.name in wanted for task in b.tasks):
            build_task(task, None)
