"""Local sources of a study: missing files, detected by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sf.attention.trained import record_of
from sf.config import Params
from sf.data.collect import annotation_files, collect
from sf.data.hub import needed_files
from sf.data.locate import MediaRoot
from sf.data.schema import RowError
from sf.errors import ConfigError, DataError, SparsityForcingError
from sf.evaluation.benchmarks import benchmarks_of
from sf.evaluation.tasks import repository_folder
from sf.models.fetch import check_family
from sf.models.weight_files import INDEX, indexed_files

__all__ = ["source_faults"]

_SHOWN = 3
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def source_faults(params: Params) -> Iterator[SparsityForcingError]:
    """One error for each local source that lacks files, with the names of the missing ones.

    Opens only configurations, annotation files and the indices of archives.
    """
    for model, spec in params.base.items():
        if spec.source != "scratch" and not spec.source.startswith("hub:"):
            yield from _base_faults(f"base.{model}.source", Path(spec.source), spec.family)
    source = params.prepare.source
    if source != "synthetic" and not source.startswith("hub:"):
        yield from _row_faults(params, Path(source))
    source = params.benchmarks.source
    if params.benchmarks.suites and source not in ("synthetic", "hub"):
        yield from _benchmark_faults(params, Path(source))


def _missing(field: str, folder: Path, names: Iterable[str], remedy: str) -> Iterator[ConfigError]:
    lacking = list(names)
    if lacking:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        rule = f"lacks {', '.join(lacking[:_SHOWN])}{more}"
        yield ConfigError(field, str(folder), rule, remedy)


def _base_faults(field: str, folder: Path, family: str) -> Iterator[SparsityForcingError]:
    try:
        check_family(folder, family)
        record_of(folder)
    except SparsityForcingError as error:
        yield ConfigError(field, str(folder), str(error), "correct it, or fetch the files again")
        return
    lacking = []
    if (folder / INDEX).is_file():
        parts = set(indexed_files(folder / INDEX).values())
        lacking += sorted(part for part in parts if not (folder / part).is_file())
    elif not any(folder.glob("*.safetensors")):
        lacking.append("model.safetensors")
    for names in (_TOKENIZERS, _PROCESSORS):
        if not any((folder / name).is_file() for name in names):
            lacking.append(" or ".join(names))
    yield from _missing(field, folder, lacking, "fetch these files from the model's repository")


def _row_faults(params: Params, source: Path) -> Iterator[SparsityForcingError]:
    given, field = params.prepare, "prepare.source"
    try:
        files = annotation_files(source)
    except DataError as error:
        yield ConfigError(field, str(source), error.rule, "correct it, or fetch the rows")
        return
    folder = Path(given.media) if given.media else source.parent if source.is_file() else source
    if not folder.is_dir():
        yield ConfigError("prepare.media", str(folder), "there is no such folder", "correct it")
        return
    collected = collect(files, folder, given.data_sources)
    rows = collected.rows
    if not rows:
        reason = collected.rejects[0].reason if collected.rejects else "it contains no rows"
        rule = f"has no usable row: {reason}"
        yield ConfigError(field, str(source), rule, "correct the rows, or prepare.data_sources")
        return
    lacking = list(_lacking_media(folder, {row.media for row in rows}))
    if len(lacking) > given.max_reject_share * len({row.media for row in rows}):
        remedy = "fetch these media, or the archives that contain them"
        yield from _missing(field, folder, lacking, remedy)


def _lacking_media(folder: Path, media: set[str]) -> Iterator[str]:
    """Media that are neither files nor in a zip, and that cannot be in a tar archive."""
    root, pending = MediaRoot(folder), []
    for name in sorted(media):
        try:
            if root.on_disk(name) is None:
                pending.append(name)
        except RowError:
            yield name
    if not pending:
        return
    tars = [name for name in root.archives.archives if not name.lower().endswith(".zip")]
    for name in pending:
        if root.archives.find(name) is None and not needed_files(tars, [name]):
            yield name


def _benchmark_faults(params: Params, home: Path) -> Iterator[SparsityForcingError]:
    field, lacking = "benchmarks.source", []
    if not home.is_dir():
        rule = "is neither 'synthetic' nor 'hub' nor a folder"
        yield ConfigError(field, str(home), rule, "give a benchmark home")
        return
    for benchmark in benchmarks_of(params.benchmarks.suites):
        for task in benchmark.tasks:
            tables = repository_folder(home, task)
            if not any(tables.rglob("*.parquet")):
                lacking.append(f"{tables.relative_to(home)}/*.parquet ({benchmark.title})")
            folders = ("", *task.media_folders) if task.media else ()
            for name in folders:
                media = home / task.media / name
                if not media.is_dir() or not any(media.iterdir()):
                    lacking.append(f"{media.relative_to(home)}/ ({benchmark.title})")
    yield from _missing(field, home, dict.fromkeys(lacking), "fetch these files of the benchmarks")
