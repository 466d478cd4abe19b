"""The steps from a source to validated rows; `sf.stages.prepare` runs them in order."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sf.data.check import MediaLog, apply_facts, check_media
from sf.data.collect import ANNOTATIONS, Collected, annotation_files, collect
from sf.data.hub import Repository, needed_files, parse_hub, record_commit, recorded_commit
from sf.data.leakage import Leak, benchmark_names, find_leaks, leak_faults
from sf.data.locate import MediaRoot, locate_rows
from sf.data.manifest import Row
from sf.data.media import num_decoders
from sf.data.split import sample, unit_hash
from sf.errors import DataError

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = [
    "Prepared",
    "RowSelection",
    "RowSource",
    "drop_leaks",
    "fetch_rows",
    "open_source",
    "use_media",
]


@dataclass(frozen=True, slots=True)
class RowSelection:
    """The wanted rows of a source.

    Attributes:
        sources: their `data_source` or top media folder; empty for all.
        sample_rows: size of a stratified sample; 0 for all rows.
        seed: of the sample.
    """

    sources: Sequence[str]
    sample_rows: int
    seed: int


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows and the folder that their media paths are relative to.

    Attributes:
        root: the data root.
        origin: name for the data card: folder, generator, or hub repository with its commit.
        collected: rows and rejects.
        unpinned: the configured source if its revision is a branch or tag, else "".
    """

    root: Path
    origin: str
    collected: Collected
    unpinned: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The prepared data.

    Attributes:
        source: the source, with the rejects.
        splits: rows of the manifests by split.
        reserve: rows on held-out sides that are in no manifest.
        leaks: media names shared with the benchmarks.
        leakage: one sentence about the leaks.
    """

    source: RowSource
    splits: dict[str, list[Row]]
    reserve: list[Row]
    leaks: list[Leak]
    leakage: str


def _select(collected: Collected, selection: RowSelection) -> Collected:
    if selection.sample_rows:
        collected.rows, rest = sample(
            collected.rows,
            selection.sample_rows,
            lambda row: unit_hash("sample", selection.seed, row.id),
        )
        collected.num_unselected += len(rest)
    return collected


def _from_folder(
    root: Path, selection: RowSelection, origin: str, media: Path | None = None
) -> RowSource:
    files = annotation_files(root)
    root = media or (root.parent if root.is_file() else root)
    if not root.is_dir():
        raise DataError("media", str(root), "there is no such folder", "correct it")
    return RowSource(root, origin, _select(collect(files, root, selection.sources), selection))


def fetch_rows(source: str, selection: RowSelection, out: Path, earlier: Path) -> RowSource:
    """The rows of a hub repository, with all files that contain their media.

    Args:
        source: "hub:OWNER/NAME@REVISION".
        selection: the wanted rows.
        out: folder for `origin.json`, which records the fetched commit.
        earlier: an earlier result, whose commit is used again.

    Raises:
        ConfigError: a malformed source.
        EnvironmentFault: the hub does not answer or gives no access, or the disk lacks space.
    """
    hub = parse_hub(source)
    recorded = recorded_commit(source, (out, earlier))
    repository = Repository(hub, commit=recorded)
    record_commit(out, source, repository.commit)
    if not hub.pinned:
        when = "as an earlier run recorded" if recorded else "its current target, which is recorded"
        warnings.warn(
            f"prepare.source {source} names no commit: {repository.commit} is used, {when}. Name "
            "the commit in place of the branch or tag to make the study repeatable elsewhere",
            stacklevel=2,
        )
    annotations = [
        name for name in repository.files if name == ANNOTATIONS or name.endswith("_processed.json")
    ]
    repository.fetch(annotations)
    origin = f"hub:{hub.name}@{repository.commit}"
    opened = _from_folder(repository.root, selection, origin)
    repository.fetch(needed_files(repository.files, {row.media for row in opened.collected.rows}))
    return opened if hub.pinned else replace(opened, unpinned=source)


def _from_generator(folder: Path, rows: int, seed: int, vision: Vision) -> None:
    """Write the mini world's dataset, replacing a folder that an earlier call left unfinished."""
    from sf.mini.rows import write_dataset

    if not (folder / ANNOTATIONS).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        write_dataset(folder, rows, seed, vision)


def open_source(
    source: str,
    selection: RowSelection,
    synthetic_rows: int,
    vision: Vision,
    *,
    out: Path,
    earlier: Path,
    media: Path | None = None,
) -> RowSource:
    """Read and validate the rows of a source; media are not opened.

    Args:
        source: "synthetic"; a local folder, annotation file or own table of questions; or
            "hub:OWNER/NAME@REVISION".
        selection: the wanted rows.
        synthetic_rows: number of rows of a synthetic source.
        vision: bounds for synthetic media.
        out: results folder; a synthetic source writes its files to `data/`, a hub source its
            commit to `origin.json`.
        earlier: an earlier result. The commit that it recorded for the same hub source is used
            again, even if the branch or tag has moved.
        media: folder that the media paths of a local source are relative to; by default the
            source's folder.

    Raises:
        ConfigError: a malformed hub source.
        DataError: there is nothing to read.
        EnvironmentFault: the hub does not answer.
    """
    if source == "synthetic":
        _from_generator(out / "data", synthetic_rows, selection.seed, vision)
        return _from_folder(out / "data", selection, "synthetic")
    if source.startswith("hub:"):
        return fetch_rows(source, selection, out, earlier)
    return _from_folder(Path(source), selection, Path(source).name, media)


def use_media(source: RowSource, visions: Sequence[Vision], log: MediaLog) -> None:
    """Find the media of all rows and open each once; rows without usable media become rejects.

    From then on, media are identified by their bytes, not by their names.

    Args:
        source: its rows get media references, facts and visual tokens.
        visions: pixel and frame bounds of all stages, those of training first.
        log: facts from earlier calls.
    """
    located = locate_rows(source.collected.rows, MediaRoot(source.root))
    source.collected.drop(located.faults, located.rows)
    rows = source.collected.rows
    media = [(row.media, row.data_type) for row in rows]
    facts = check_media(source.root, media, visions, log, num_decoders())
    good, faults = apply_facts(rows, facts, visions[0])
    source.collected.drop(faults, good)
    digests = {row.media: facts[row.media, row.data_type].digest for row in good}
    source.collected.groups = {row.id: digests[row.media] for row in good}
    source.collected.num_copies = len(digests) - len(set(digests.values()))


def drop_leaks(collected: Collected, benchmarks: Path | None) -> tuple[list[Leak], str]:
    """Reject rows with benchmark media.

    Returns:
        The leaks, and one sentence for the data card.
    """
    if benchmarks is None:
        return [], "Leakage was not checked: no folder with benchmark data was given."
    names, without = benchmark_names(benchmarks)
    if not names:
        return [], "Leakage was not checked: the benchmarks' tables name no media."
    leaks = find_leaks(collected.rows, names)
    faults = leak_faults(leaks)
    kept: list[Row] = [row for row in collected.rows if row.id not in faults]
    collected.drop(faults, kept)
    unsure = len(leaks) - len(faults)
    unchecked = f" Not checked, as their tables name no media: {', '.join(without)}."
    return leaks, (
        f"Leakage: rows were checked against {len(names):,} media names of the benchmarks; "
        f"{len(faults):,} rows with one of them were rejected, {unsure:,} more share a name that "
        f"is too general to prove anything.{unchecked if without else ''}"
    )
