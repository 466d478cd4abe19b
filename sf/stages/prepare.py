"""Stage `prepare`: rows of Video-R1-260k's schema with media -> validated manifests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section, Seed
from sf.sections import Prepare, Vision

if TYPE_CHECKING:
    from sf.data.preparation import Prepared
    from sf.jobs import Job


class Parameters(Section):
    """One source and its split."""

    seed: Seed = Field(description="seed of the generator, the sample and the split")
    prepare: Prepare
    vision: Vision
    evaluation_vision: Vision
    benchmarks: Path | None = Field(
        None, description="the benchmark data; rows with their media names are rejected"
    )
    fetched: Path | None = Field(
        None, description="result of the stage fetch; without it, a hub source is fetched here"
    )
    output: Path = Field(description="results folder")


def asks_hub(p: Parameters) -> bool:
    """Whether the stage needs a network."""
    return p.fetched is None and p.prepare.source.startswith("hub:")


def inputs(p: Parameters) -> dict[str, Path]:
    """The stage's inputs: the annotation files of a local source, and the benchmark data."""
    from sf.data.collect import annotation_files

    source = p.prepare.source
    local = source != "synthetic" and not source.startswith("hub:")
    files = annotation_files(Path(source)) if local else []
    named = {f"source/{file.relative_to(source).as_posix()}": file for file in files}
    read = {"benchmarks": p.benchmarks, "fetched": p.fetched}
    return named | {name: path for name, path in read.items() if path}


def run(p: Parameters, job: Job) -> None:
    """Write train, calibration and held-out manifests, rejects and the data card.

    Writes `{train,calibration,heldout}.parquet`, `rejects.parquet`, `media.jsonl` (facts of all
    media; those of an earlier result are reused), `data_card.md`, `dataset.json`, `tables/` and
    `figures/`. The files of a synthetic source are in `data/`; the commit of a hub source is in
    `origin.json`, and later runs use it again. A killed run resumes within the media pass.

    Raises:
        DataError: there is nothing to read, or more than `max_reject_share` of the rows were
            rejected; their reasons are then in `rejects.parquet` in the work folder.
    """
    from sf.data.card import summary, write_card
    from sf.data.dataset_record import write_dataset_record

    done = write_manifests(p, job.out)
    write_card(job.out, done, p.vision, p.seed)
    write_dataset_record(job.out, done.source.origin, done.splits)
    job.tracker.summary(summary(done))


def write_manifests(p: Parameters, out: Path) -> Prepared:
    """Write everything except the data card; see `run`."""
    from sf.data import preparation
    from sf.data.check import MediaLog
    from sf.data.collect import refuse_many, reject_table
    from sf.data.manifest import write_manifest
    from sf.data.split import SplitSettings, split_rows
    from sf.tables import write_csv, write_parquet

    given = p.prepare
    settings = SplitSettings(
        p.seed,
        given.calibration_share,
        given.heldout_share,
        given.calibration_rows,
        given.heldout_rows,
    )
    selection = preparation.RowSelection(given.data_sources, given.sample_rows, p.seed)
    source = preparation.open_source(
        given.source,
        selection,
        given.synthetic_rows or 0,
        p.vision,
        out=out,
        earlier=p.fetched or p.output,
        media=None if given.media is None else Path(given.media),
    )
    log = MediaLog(out / "media.jsonl", earlier=p.output / "media.jsonl")
    preparation.use_media(source, (p.vision, p.evaluation_vision), log)
    leaks, leakage = preparation.drop_leaks(source.collected, p.benchmarks)
    rejects = reject_table(source.collected.rejects)
    write_parquet(rejects, out / "rejects.parquet")
    write_csv(rejects, out / "tables" / "rejects.csv")
    refuse_many(source.collected, given.max_reject_share, out / "rejects.parquet")
    splits = split_rows(source.collected.rows, settings, source.collected.groups)
    reserve = splits.pop("reserve")
    for split, rows in splits.items():
        write_manifest(out / f"{split}.parquet", rows, source.root)
    return preparation.Prepared(source, splits, reserve, leaks, leakage)
