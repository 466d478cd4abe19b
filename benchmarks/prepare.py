"""Time of `prepare` at the real size, without opening media.

Writes a synthetic Video-R1-260k.json with the real proportions of problem types and media (263,071
rows; the media are one-byte files, in memory where /dev/shm allows it), then validates,
deduplicates, locates, splits and writes it, in a new process for each repeat. Limited to two cores
where the system supports it.

    python benchmarks/prepare.py [--rows 263071] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from table import Report, Row, arguments_parser

NUM_ROWS = 263_071
TYPES = {  # rows of Video-R1-260k by problem type
    "multiple choice": 168_769,
    "free-form": 38_722,
    "numerical": 34_354,
    "OCR": 15_886,
    "regression": 5_340,
}
VIDEO_SHARE = 116_248 / NUM_ROWS
SOURCES = {
    "video": ("LLaVA-Video-178K", "NeXT-QA", "PerceptionTest", "CLEVRER", "STAR"),
    "image": ("Math", "Chart", "General", "Knowledge", "OCR", "Spatial"),
}
ROWS_PER_MEDIUM = 1.5
CORES = 2
MAX_SECONDS, MAX_GIB = 60.0, 4.0
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def records(num_rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows like the real ones, and as long."""
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in ("scen", "obj", "mov", "pers", "gre", "tabl") for b in "aeiouyklmn"]
    kinds, weights = list(TYPES), list(TYPES.values())
    for number in range(num_rows):
        kind = rng.choices(kinds, weights)[0]
        data_type = "video" if rng.random() < VIDEO_SHARE else "image"
        source = rng.choice(SOURCES[data_type])
        medium = rng.randrange(int(num_rows / ROWS_PER_MEDIUM))
        suffix = "mp4" if data_type == "video" else "jpg"
        text = " ".join(rng.choices(words, k=rng.randint(8, 45)))
        answer = rng.choice(words)
        options: list[str] = []
        if kind == "multiple choice":
            options = [f"{x}. {' '.join(rng.choices(words, k=6))}" for x in "ABCD"]
            answer = rng.choice("ABCD")
        elif kind in ("numerical", "regression"):
            answer = str(round(rng.uniform(0, 1000), 2))
        yield {
            "problem_id": number,
            "problem": f"{text} {number}?",
            "data_type": data_type,
            "problem_type": kind,
            "options": options,
            "process": "",
            "solution": f"<answer>{answer}</answer>",
            "path": f"./{source}/{medium % 97:02d}/{medium}.{suffix}",
            "data_source": source,
        }


def write_source(root: Path, num_rows: int) -> float:
    """Write the JSON and the one-byte media; returns MiB of JSON."""
    made: set[str] = set()
    annotations = root / "Video-R1-260k.json"
    with annotations.open("w", encoding="utf-8") as file:
        for number, row in enumerate(records(num_rows)):
            file.write(("[\n  " if number == 0 else ",\n  ") + json.dumps(row))
            made.add(row["path"])
        file.write("\n]\n")
    for folder in {os.path.dirname(path) for path in made}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path in made:
        (root / path).write_bytes(b"x")
    return annotations.stat().st_size / 2**20


def described(root: Path, media: Any, *rest: Any) -> dict[tuple[str, str], Any]:
    """Replaces the media pass: facts of files that are not opened."""
    from sf.data.media_facts import MediaFacts

    return {
        (name, kind): MediaFacts(
            name, kind, "", 640, 480, 300 if kind == "video" else 1, 30.0, 10.0, "", name
        )
        for name, kind in dict.fromkeys(media)
    }


def prepare(root: Path, out: Path, results: Any) -> None:
    """One repeat in a process of its own: seconds, CPU seconds, peak GiB, rows."""
    from sf.data import preparation
    from sf.scales import load_scale
    from sf.stages.prepare import Parameters, write_manifests

    preparation.check_media = described  # type: ignore[assignment]

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:CORES]))
    paper = load_scale("paper")
    parameters = Parameters(
        output=out,
        seed=0,
        vision=paper.vision,
        evaluation_vision=paper.evaluation_vision,
        prepare=paper.prepare.model_copy(update={"source": str(root)}),
    )
    began, began_cpu = time.perf_counter(), time.process_time()
    done = write_manifests(parameters, out)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    written = sum(map(len, done.splits.values())) + len(done.reserve)
    results.put((seconds, cpu_seconds, peak_gib, written + len(done.source.found.rejects)))


def interval(values: list[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % t interval; a single value has no interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = T_95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def measure(num_rows: int, repeats: int, report: Report) -> list[Row]:
    """Rows of the result table."""
    context = multiprocessing.get_context("spawn")
    seconds, cpu_seconds, peaks = [], [], []
    in_memory = Path("/dev/shm")
    parent = in_memory if os.access(in_memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        root = Path(folder) / "data"
        root.mkdir()
        report.begin("writing the source")
        size_mib = write_source(root, num_rows)
        for repeat in range(repeats):
            report.begin(f"repeat {repeat + 1} of {repeats}")
            out = Path(folder) / f"out{repeat}"
            out.mkdir()
            results = context.Queue()
            worker = context.Process(target=prepare, args=(root, out, results))
            worker.start()
            took, cpu, peak, accounted = results.get(timeout=1800)
            worker.join()
            if accounted != num_rows:
                raise SystemExit(f"{accounted} of {num_rows} rows are accounted for")
            seconds.append(took)
            cpu_seconds.append(cpu)
            peaks.append(peak)
    scale = num_rows / NUM_ROWS
    rows = [
        ("prepare_seconds", seconds, "s", MAX_SECONDS * scale, "lower"),
        ("prepare_cpu_seconds", cpu_seconds, "s", None, "lower"),
        ("prepare_peak_memory", peaks, "GiB", MAX_GIB, "lower"),
        (
            "prepare_rows_per_second",
            [num_rows / took for took in seconds],
            "rows/s",
            None,
            "higher",
        ),
        ("prepare_json_size", [size_mib], "MiB", None, "none"),
    ]
    return [
        Row(name, *interval(values), unit, target, better)
        for name, values, unit, target, better in rows
    ]


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    head = f"cpu, {CORES} cores at most, {arguments.rows:,} rows, {arguments.repeats} repeats"
    report = Report(head, arguments.json, "mean")
    report.add(measure(arguments.rows, arguments.repeats, report))
    report.end()


if __name__ == "__main__":
    main()
