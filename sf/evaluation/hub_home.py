"""The benchmarks on the hub: fetched once, then read as a local benchmark home."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sf.atomic_files import read_json, write_json
from sf.errors import DataError
from sf.evaluation.available import fetch_from_hub, hf_home, missing_in_hub_cache, snapshot
from sf.evaluation.benchmark import Benchmark
from sf.evaluation.benchmarks import BENCHMARKS, EXTRA
from sf.ranks import rank

__all__ = ["fetch_benchmarks", "hub_home", "read_commits"]

_COMMITS = "commits.json"


def read_commits(folder: Path) -> dict[str, str]:
    """The commit of each repository, written by `fetch_benchmarks` to a folder; {} if missing."""
    path = folder / _COMMITS
    return dict(read_json(path)) if path.is_file() else {}


def fetch_benchmarks(
    benchmarks: Sequence[Benchmark], out: Path, earlier: Path, scratch: Path
) -> dict[str, str]:
    """Fetch the benchmarks' repositories to the hub cache and unpack their videos in HF_HOME.

    Args:
        benchmarks: the benchmarks to fetch.
        out: folder for `commits.json`.
        earlier: an earlier result, whose recorded commits are used again even if the repositories'
            main branches have moved.
        scratch: for Arrow files.

    Returns:
        The commit of each repository.

    Raises:
        DataError: the hub cannot be reached; everything that is missing is listed.
        EnvironmentFault: the disk lacks space, or a repository is gated.
    """
    known = {**read_commits(earlier), **read_commits(out)}
    missing = missing_in_hub_cache(benchmarks, known)
    fetched = fetch_from_hub(benchmarks, missing, known, scratch)
    repositories = {task.repository for one in benchmarks for task in one.tasks}
    commits = {**known, **fetched}
    for name in repositories - commits.keys():
        folder = snapshot(name, None)
        assert folder is not None, "it would be missing"
        commits[name] = folder.name
    commits = {name: commits[name] for name in repositories}
    write_json(out / _COMMITS, commits)
    return commits


def hub_home(commits: Mapping[str, str], scratch: Path) -> Path:
    """A benchmark home (`sf.evaluation.tasks`) with links to the fetched data.

    Args:
        commits: of the repositories.
        scratch: folder for the home, one for each process of torchrun.

    Raises:
        DataError: a repository is not in this machine's cache at its commit.
    """
    home = scratch / f"home{rank()}"
    for repository, commit in commits.items():
        folder = snapshot(repository, commit)
        if folder is None:
            rule = f"is not whole in the hub's cache ({hf_home()})"
            remedy = "set HF_HOME as for the stage fetch, or delete that stage's result and rerun"
            raise DataError("benchmarks", f"{repository}@{commit}", rule, remedy)
        _link(home / "hub" / repository, folder)
    for task in (task for one in (*BENCHMARKS, *EXTRA) for task in one.tasks):
        if task.media and task.repository in commits:
            _link(home / task.media, hf_home() / task.media)
    return home


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)
