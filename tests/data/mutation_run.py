"""Thousands of damaged files through `prepare` and the loaders of the evaluation.

    python tests/data/mutation_run.py --files 20000 --folder FOLDER

Each batch has 1,000 files: images, videos, annotation files and archives, damaged in a way that
their number decides. Checked are: no exception; every row is used, or rejected for a reason that
other decoders confirm; no decoder crashed or hung; what is used decodes again to what was said;
whole files are used; damage in an annotation file costs no row beside it; what an archive still
holds is used; the evaluation leaves out the same images and videos, reads damaged tables and rows
or names them, and can score what is left; `sf ask` and qwen-vl-utils end on none. What is violated
is printed, its file is kept in `FOLDER/violations`, and the exit code is 1. Finished batches are in
`FOLDER/batches.jsonl`: a killed run goes on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clips import record, write_picture
from decoded_again import decoded
from independent_decoders import LOST, untrue
from mutations import (
    ROWS_A_JSON,
    Mutated,
    annotations,
    archive,
    images,
    mutated,
    untouched_rows,
    videos,
)
from sources import parameters, reasons, used, write_source

from sf.isolation import Lost, run_isolated
from sf.json_lines import append_json_lines, read_json_lines
from sf.stages import prepare

BATCH = {"image": 450, "video": 300, "json": 175, "archive": 75}
EVALUATION = {"row": 24, "table": 6, "loader": 60}  # besides; "loader": of the images and videos
IN_ARCHIVE = 4


@dataclass
class Batch:
    """The files of a batch below a data root, and what is found.

    Attributes:
        number: seeds the damage.
        root: the data root.
        media: damaged images and videos by row id.
        texts: damaged annotation files by prefix of their rows' ids, and as they were.
        packed: rows of archives: row id -> archive and member.
        violations: what is wrong, with the file.
        counts: accepted and rejected files by type.
        sizes: files of each type.
    """

    number: int
    root: Path
    media: dict[str, Mutated] = field(default_factory=dict)
    texts: dict[str, tuple[Mutated, bytes]] = field(default_factory=dict)
    packed: dict[str, tuple[Path, str]] = field(default_factory=dict)
    violations: list[tuple[str, Path]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, int] = field(default_factory=dict)

    def path(self, identity: str) -> Path:
        """Path of a damaged image or video."""
        return self.root / f"media/{identity}.{self.media[identity].suffix}"

    def violated(self, what: str, path: Path) -> None:
        """Note a violation."""
        self.violations.append((what, path))


def make(number: int, root: Path, seeds: Path, sizes: dict[str, int]) -> Batch:
    """Write a batch.

    Args:
        number: of the batch.
        root: the data root.
        seeds: folder of whole clips.
        sizes: files of each type.
    """
    rng, batch, rows = random.Random(number), Batch(number, root, sizes=sizes), []
    whole = {"image": images(), "video": videos(seeds)}
    for data_type in ("image", "video"):
        for index in range(sizes[data_type]):
            identity = f"{data_type}-{index}"
            batch.media[identity] = mutated(rng.choice(whole[data_type]), rng)
            path = batch.path(identity)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(batch.media[identity].content)
            place = str(path.relative_to(root))
            rows.append(record(0, problem_id=identity, data_type=data_type, path=place))
    write_picture(root / "pictures/whole.png")
    for index in range(sizes["json"]):
        prefix = f"json-{index}"
        seed = rng.choice(list(annotations(prefix, "pictures/whole.png")))
        batch.texts[prefix] = mutated(seed, rng), seed[2]
        (root / prefix).mkdir()
        (root / prefix / "x_processed.json").write_bytes(batch.texts[prefix][0].content)
    for index in range(sizes["archive"]):
        kind = rng.choice(("zip", "zip", "tar", "tar.gz"))
        names = [f"packed/{index}-{member}.png" for member in range(IN_ARCHIVE)]
        content = (root / "pictures/whole.png").read_bytes()
        seed = (kind, kind, archive(dict.fromkeys(names, content), kind))
        path = root / f"archive{index}.{kind}"
        path.write_bytes(mutated(seed, rng).content)
        for member, name in enumerate(names):
            identity = f"archive-{index}-{member}"
            batch.packed[identity] = path, name
            rows.append(record(0, problem_id=identity, path=name))
    for at, row in enumerate(rows):
        row["problem"] = f"Which colour is shape {at} of this?"
    write_source(root, rows)
    return batch


def prepared_rows(batch: Batch, folder: Path) -> tuple[dict[str, object], dict[str, str]]:
    """The rows that `prepare` uses, and the reasons for the rejected ones."""
    out = folder / "out"
    out.mkdir()
    given = parameters(batch.root, folder, calibration_rows=10**6, heldout_rows=10**6)
    prepare.write_manifests(given, out)
    return dict(used(out)), reasons(out)


def check_media(batch: Batch, rows: dict[str, object], refused: dict[str, str]) -> None:
    """Verdicts on images and videos."""
    accepted = []
    for identity, damaged in batch.media.items():
        data_type, path = identity.split("-")[0], batch.path(identity)
        batch.counts[f"{data_type} {'used' if identity in rows else 'rejected'}"] += 1
        if (identity in rows) == (identity in refused):
            batch.violated("neither used nor rejected, or both", path)
        elif identity in rows:
            accepted.append((identity, data_type, path))
        elif LOST.search(refused[identity]):
            batch.violated(refused[identity], path)
        elif damaged.kind == "whole":
            batch.violated(f"a whole file is rejected: {refused[identity]}", path)
        elif complaint := untrue(refused[identity], path, data_type):
            batch.violated(f"{complaint}, but: {refused[identity]}", path)
    calls = [(str(path), data_type) for _, data_type, path in accepted]
    for at, size in run_isolated(decoded, calls, [120.0] * len(calls), workers=2):
        identity, _, path = accepted[at]
        row = rows[identity]
        if isinstance(size, Lost):
            batch.violated(size.reason, path)
        elif size != (row.width, row.height):  # type: ignore[attr-defined]
            batch.violated(f"it decodes to {size}", path)


def check_texts(batch: Batch, rows: dict[str, object], refused: dict[str, str]) -> None:
    """Damage in an annotation file costs only the rows that it touches."""
    for prefix, (damaged, whole) in batch.texts.items():
        path = batch.root / prefix / "x_processed.json"
        ids = {identity for identity in rows if identity.startswith(f"{prefix}-")}
        batch.counts["json used" if ids else "json rejected"] += 1
        if damaged.name.startswith("utf-16"):  # a byte more or less shifts all that follow
            if damaged.kind == "whole" and len(ids) < ROWS_A_JSON:
                batch.violated(f"only {sorted(ids)} are used", path)
            continue
        lost = untouched_rows(whole, damaged, prefix) - ids - refused.keys()
        if lost:
            batch.violated(f"rows are lost: {sorted(lost)}", path)


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """What zipfile and tarfile can still read from an archive."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as opened:
                for info in opened.infolist():
                    try:
                        yield info.filename, opened.read(info)
                    except Exception:  # noqa: BLE001 - any damage of this member
                        continue
        else:
            with tarfile.open(path) as opened:
                for info in opened:
                    content = opened.extractfile(info) if info.isfile() else None
                    if content is not None:
                        yield info.name, content.read()
    except Exception:  # noqa: BLE001 - any damage
        return


def check_archives(batch: Batch, rows: dict[str, object], refused: dict[str, str]) -> None:
    """Members that can still be read are used."""
    held = {path: dict(members(path)) for path, _ in batch.packed.values()}
    whole = (batch.root / "pictures/whole.png").read_bytes()
    for path in held:
        states = {
            i in rows for i, (archive_path, _) in batch.packed.items() if archive_path == path
        }
        batch.counts["archive used" if states == {True} else "archive damaged"] += 1
    for identity, (path, name) in batch.packed.items():
        if (identity in rows) == (identity in refused):
            batch.violated(f"{name} is neither used nor rejected, or both", path)
        elif identity in refused and held[path].get(name) == whole:
            batch.violated(f"{name} is whole, but: {refused[identity]}", path)


def check_evaluation(batch: Batch, refused: dict[str, str], folder: Path, work: Path) -> None:
    """The evaluation leaves out what `prepare` rejects; no file ends `sf ask` or decord."""
    from evaluation_run import damaged_rows, damaged_tables, loaders_agree, read_by_other_loaders

    media = list(batch.media)
    pictures = [identity for identity in media if identity.startswith("image")]
    clips = [identity for identity in media if identity.startswith("video")]
    home = folder / "home"
    contents = [batch.media[identity].content for identity in pictures]
    no_images, no_videos = loaders_agree(home, contents, [batch.path(i) for i in clips], work)
    left_out = {pictures[at] for at in no_images} | {clips[at] for at in no_videos}
    for identity in left_out ^ {i for i in refused if i in batch.media}:
        batch.violated("prepare and the evaluation disagree", batch.path(identity))
    some = media[:: max(1, len(media) // batch.sizes["loader"])] if batch.sizes["loader"] else []
    pairs = [(str(batch.path(identity)), identity.split("-")[0]) for identity in some]
    for at, what in read_by_other_loaders(pairs) if pairs else ():
        batch.violated(what, batch.path(some[at]))
    batch.counts["loader"] += len(some)
    rows, tables = batch.sizes["row"], batch.sizes["table"]
    violations = damaged_rows(home, batch.number, rows, work) if rows else []
    violations += damaged_tables(home, batch.number, tables, work)
    batch.counts.update(row=rows, table=tables)
    batch.violations += [(what, batch.root) for what in violations]


def run_batch(number: int, folder: Path, sizes: dict[str, int]) -> Batch:
    """Make and check one batch; its files are removed, those of violations are kept.

    Args:
        number: of the batch.
        folder: of the run.
        sizes: files of each type.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        batch = make(number, work / "data", folder / "clips", sizes)
        rows, refused = prepared_rows(batch, work)
        check_media(batch, rows, refused)
        check_texts(batch, rows, refused)
        check_archives(batch, rows, refused)
        check_evaluation(batch, refused, folder, work)
        for path in (path for _, path in batch.violations if path.is_file()):
            kept = folder / "violations" / f"{number}-{path.relative_to(work / 'data')}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept)
    return batch


def run(count: int, folder: Path, sizes: dict[str, int] | None = None) -> Counter[str]:
    """Check so many files; what an earlier call checked is not checked again.

    Returns:
        Files by type and verdict, and "violations".
    """
    from evaluation_run import STAND_INS

    from sf.mini.benchmarks import write_benchmarks

    sizes = {**BATCH, **EVALUATION} if sizes is None else sizes
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "home").is_dir():
        write_benchmarks(folder / "home", 4, 0, benchmarks=STAND_INS)
    log = folder / "batches.jsonl"
    done = {line["batch"]: line for line in read_json_lines(log)} if log.is_file() else {}
    size = sum(sizes[name] for name in BATCH)
    for number in range(-(-count // size)):
        if number in done:
            continue
        began = time.monotonic()
        batch = run_batch(number, folder, sizes)
        violations = [f"{path.name}: {what}" for what, path in batch.violations]
        done[number] = {"batch": number, "counts": dict(batch.counts), "violations": violations}
        append_json_lines(log, [done[number]])
        seconds = time.monotonic() - began
        print(
            f"batch {number}: {size} files, {seconds:.0f} s, {len(violations)} violations",
            flush=True,
        )
        for line in violations:
            print(f"  {line}", flush=True)
    total: Counter[str] = Counter()
    for line in done.values():
        total.update(line["counts"])
        total["violations"] += len(line["violations"])
    return total


def main() -> None:
    """Run, print the counts, and exit with 1 for a violation."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, required=True, help="of the run; kept")
    arguments = parser.parse_args()
    total = run(arguments.files, arguments.folder)
    for name, value in sorted(total.items()):
        print(f"{name:20} {value:8}")
    sys.exit(1 if total["violations"] else 0)


if __name__ == "__main__":
    main()
