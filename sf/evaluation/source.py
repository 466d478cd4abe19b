"""The source of the benchmark data, passed from the `benchmarks` stage to `evaluate`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sf.atomic_files import read_json, write_json
from sf.data.check import MediaLog
from sf.data.leakage import MEDIA_COLUMNS, NAMES_FILE, media_name
from sf.errors import ConfigError, DataError
from sf.evaluation.available import missing_in, refuse
from sf.evaluation.benchmarks import BENCHMARKS, EXTRA, Benchmark, benchmarks_of
from sf.evaluation.hub_home import fetch_benchmarks, hub_home, read_commits
from sf.evaluation.readable import evaluated_rows, leave_out, unreadable_rows
from sf.evaluation.table_rows import each_row
from sf.evaluation.tasks import benchmark_home, build_task
from sf.tables import write_csv

if TYPE_CHECKING:
    from datasets import Dataset

    from sf.sections import Vision

__all__ = ["BenchmarkSource", "prepare_source", "read_source", "source_table"]

_FILE = "benchmarks.json"
_STAND_IN_TOKENS = 8


@dataclass(frozen=True)
class BenchmarkSource:
    """The location of the benchmark data.

    Attributes:
        kind: "synthetic", "hub" or "folder".
        home: benchmark home; relative to the stage's result for synthetic data, '' for the hub.
        limit: most rows per task, 0 for all.
        most_new_tokens: upper bound of the tasks' generation limits, 0 for none. Synthetic
            questions have short answers, but a model that has not learnt to stop would generate
            1024 tokens.
        unreadable: excluded rows of each task, by number, with the reason.
        commits: of each repository of the hub.
    """

    kind: str
    home: str
    limit: int
    most_new_tokens: int
    unreadable: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    commits: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `benchmarks.json`."""
        write_json(folder / _FILE, asdict(self))

    def home_path(self, folder: Path, scratch: Path) -> Path:
        """The benchmark home.

        Args:
            folder: the stage's result folder.
            scratch: of the reading job, for links to fetched hub files.

        Raises:
            DataError: the fetched files are not on this machine.
        """
        return folder / self.home if self.home else hub_home(self.commits, scratch)


def read_source(folder: Path) -> BenchmarkSource:
    """Read the source from the result folder of the `benchmarks` stage.

    Raises:
        DataError: it is missing.
    """
    path = folder / _FILE
    if not path.is_file():
        raise DataError("benchmarks", str(folder), f"has no {_FILE}", "run the benchmarks stage")
    fields = read_json(path)
    bad = fields.pop("unreadable", {})  # JSON stores the numbers as text
    numbered = {task: {int(row): why for row, why in rows.items()} for task, rows in bad.items()}
    return BenchmarkSource(**fields, unreadable=numbered)


def prepare_source(
    source: str,
    samples: int,
    seed: int,
    suites: Sequence[str],
    vision: Vision,
    folder: Path,
    scratch: Path,
    fetched: Path | None = None,
) -> tuple[BenchmarkSource, dict[str, int]]:
    """Write synthetic data, or check that real data are complete and open all of their media.

    Args:
        source: "synthetic", "hub" or a local benchmark home.
        samples: rows per task; 0 for all (real data only).
        seed: of the synthetic data.
        suites: the suites to evaluate.
        vision: pixel and frame bounds of the evaluation.
        folder: the stage's result folder; synthetic data are written to its `home`.
        scratch: for Arrow files, and for facts about videos that survive a kill.
        fetched: result of the stage `fetch`; None to download data missing from the hub cache now.

    Returns:
        The source, and the rows of each task. Unreadable rows are named in a warning.

    Raises:
        ConfigError: an unknown suite, no such folder, or synthetic data without a number of rows.
        DataError: real data are incomplete.
    """
    benchmarks = benchmarks_of(suites)
    if source == "synthetic":
        if not samples:
            rule = "stand-ins need a number of rows"
            raise ConfigError("benchmarks.samples", samples, rule, "give at least 1")
        from sf.mini.benchmarks import write_benchmarks

        replies = write_benchmarks(folder / "home", samples, seed, benchmarks=benchmarks)
        rows = {task: len(replies[task]) for task in replies}
        return BenchmarkSource("synthetic", "home", 0, _STAND_IN_TOKENS), rows
    if source == "hub":
        commits = (
            fetch_benchmarks(benchmarks, scratch, scratch, scratch)
            if fetched is None
            else read_commits(fetched)
        )
        home = hub_home(commits, scratch)
        missing = missing_in(home, benchmarks, scratch / "arrow")
        refuse(source, missing, "fetch or repair these files")
        prepared = BenchmarkSource("hub", "", samples, 0, commits=commits)
        return _opened(prepared, home, benchmarks, vision, folder, scratch)
    home = Path(source)
    if not home.is_dir():
        rule = "is neither 'synthetic' nor 'hub' nor a folder"
        raise ConfigError("benchmarks.source", source, rule, "give a benchmark home")
    missing = missing_in(home, benchmarks, scratch / "arrow")
    refuse(source, missing, "bring the files there (docs: the layout of a benchmark home)")
    prepared = BenchmarkSource("folder", str(home.resolve()), samples, 0)
    return _opened(prepared, home, benchmarks, vision, folder, scratch)


def _media_names(documents: Dataset) -> list[str]:
    """Media names in a task's table (`sf.data.leakage`); images are not decoded."""
    texts = ("string", "large_string")
    columns = [
        name
        for name in MEDIA_COLUMNS
        if getattr(documents.features.get(name), "dtype", None) in texts
    ]
    rows = (row for _, row in each_row(documents.select_columns(columns)) if isinstance(row, dict))
    return sorted({media_name(row[name]) for row in rows for name in columns if row[name]})


def _opened(
    source: BenchmarkSource,
    home: Path,
    benchmarks: Sequence[Benchmark],
    vision: Vision,
    folder: Path,
    scratch: Path,
) -> tuple[BenchmarkSource, dict[str, int]]:
    """The source with its unreadable rows, and the rows of each task.

    The names of the tasks' media are written too, for the leakage check of `prepare`.
    """
    rows: dict[str, int] = {}
    bad: dict[str, dict[int, str]] = {}
    named: list[tuple[str, str]] = []
    log = MediaLog(scratch / "media.jsonl")
    with benchmark_home(home, scratch / "arrow"):
        for task in (task for benchmark in benchmarks for task in benchmark.tasks):
            lmms_task = build_task(task, home)
            rows[task.name] = len(lmms_task.eval_docs)
            names = _media_names(lmms_task.eval_docs_no_media) or [""]
            named += [(task.name, name) for name in names]
            unreadable = unreadable_rows(lmms_task, task, vision, log, source.limit)
            if unreadable:
                bad[task.name] = unreadable
                leave_out(lmms_task, task, unreadable, source.limit)  # rejects a task without rows
                warnings.warn(_named(task.name, unreadable), stacklevel=3)
    write_csv(pd.DataFrame(named, columns=["task", "name"]), folder / NAMES_FILE)
    return replace(source, unreadable=bad), rows


def _named(task: str, unreadable: Mapping[int, str]) -> str:
    lines = [f"  row {number}: {reason}" for number, reason in unreadable.items()]
    head = f"{len(unreadable)} rows of {task} cannot be read and are left out of every evaluation:"
    return "\n".join([head, *lines, "To have them counted, fetch them and run this stage again."])


def source_table(source: BenchmarkSource, rows: Mapping[str, int]) -> pd.DataFrame:
    """One line per task: benchmark, task, rows, unreadable and evaluated rows, generation limit.

    Args:
        source: of the data.
        rows: of each task.
    """
    lines = []
    for benchmark in (*BENCHMARKS, *EXTRA):
        for task in (task for task in benchmark.tasks if task.name in rows):
            bad = source.unreadable.get(task.name, {})
            evaluated = evaluated_rows(task, rows[task.name], bad, source.limit)
            limit = min(task.max_new_tokens, source.most_new_tokens or task.max_new_tokens)
            lines.append(
                {
                    "benchmark": benchmark.name,
                    "task": task.name,
                    "rows": rows[task.name],
                    "unreadable": len(bad),
                    "evaluated": len(evaluated),
                    "max_new_tokens": limit,
                }
            )
    return pd.DataFrame(lines)
