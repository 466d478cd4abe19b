"""Time and memory of the report, from evaluations at the real size.

Writes synthetic evaluations with the product's own writer, by default of 4 models, 12 rows and the
tables' 14 benchmarks with 1,000 questions each (672,000 samples with replies, ratios of 28 layers
and kept cells), and the questions' previews. Then writes the report in a fresh process. Results
that are already in the folder are used.

    python benchmarks/report.py [--models 4] [--rows 12] [--questions 1000] [--repeats 3]
                                [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
from table import Report, Row, arguments_parser, interval

from sf.evaluation.benchmarks import BENCHMARKS, Benchmark, Task
from sf.evaluation.packed_cells import packed
from sf.evaluation.records import Record
from sf.evaluation.run import BenchmarkResult, Sample
from sf.evaluation.scoring import SampleScore
from sf.evaluation.tables import sample_lines, scores_table
from sf.json_lines import write_json_lines
from sf.published import INFERENCE_RETENTION_P
from sf.report.gate import DENSE
from sf.tables import write_csv, write_parquet

LAYERS, GROUPS, CELLS = 28, 3, {"image": (1, 18, 24), "video": (16, 10, 14)}
MAX_SECONDS, MAX_GIB = 60.0, 2.0
WORDS = ("the", "a", "red", "blue", "left", "man", "dog", "table", "runs", "holds", "before")
PROGRAM = """
import json, os, resource, sys, time
from pathlib import Path
began = time.perf_counter()
from sf.report.build import build_report
from sf.report.definitions import Row
from sf.report.results import Study
from sf.report.table_pages import write_table_page
root, out, target, models, methods, objectives = map(json.loads, sys.argv[1:])
study = Study(Path(root), tuple(models), tuple(methods), tuple(objectives), ("all",))
if target:
    rows = [Row(name=n, as_published=n, trained=n in objectives) for n in (*methods, *objectives)]
    write_table_page(target, study, rows, Path(out), "snakemake")
else:
    build_report(study, "synthetic", Path(out))
own, largest = (resource.getrusage(who).ru_maxrss / 2**20
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
peak = own + len(os.sched_getaffinity(0)) * largest
print(json.dumps([time.perf_counter() - began, peak]))
"""
PAGES = {"report": "", "table1": "table1", "figure7": "figure7"}


def methods_of(rows: int) -> tuple[list[str], list[str]]:
    """Half of the rows without training, half with it."""
    untrained = [DENSE, "zipvl", *(f"method{number}" for number in range(rows))]
    return untrained[: rows - rows // 2], [f"objective{number}" for number in range(rows // 2)]


def samples(
    benchmark: Benchmark, task: Task, questions: int, row: int, chance: random.Random
) -> Iterator[Sample]:
    """Answers to a task's questions, four about each picture; the fewer tokens, the more wrong."""
    ratio = 1.0 if row == 0 else 0.2 + 0.6 * chance.random()
    shape = (GROUPS, *CELLS[benchmark.kind])
    for number in range(questions):
        cells = np.frombuffer(chance.randbytes(int(np.prod(shape))), np.uint8) < 256 * ratio
        right = float(chance.random() < 0.6 + 0.2 * ratio)
        layers = tuple(1.0 if row == 0 else ratio * chance.random() for _ in range(LAYERS))
        record = Record(
            task=task.name,
            doc_id=number,
            source=f"{benchmark.name} {number}",
            reply=" ".join(chance.choices(WORDS, k=chance.randint(1, 40))),
            token_ratio=sum(layers) / LAYERS,
            layer_ratios=layers,
            prompt_tokens=int(np.prod(shape[1:])) + 60,
            new_tokens=20,
            kv_bytes=10**8,
            seconds=0.2,
            batch=8,
            kept_cells=() if row == 0 else (packed(cells.reshape(shape)),),
        )
        score = SampleScore(right, group=f"group{number % 6}", unit=f"picture{number // 2}")
        yield Sample(benchmark.name, chance.choice(WORDS), score, record)


def write_stamp(folder: Path, stage: str) -> None:
    """The stamp that makes a folder a result."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = {
        "stage": stage,
        "key": f"{random.Random(str(folder)).getrandbits(64):016x}",
        "files": {},
        "parameters": {"seed": 0, "evaluate": {"retention_p": INFERENCE_RETENTION_P}},
        "commit": "0" * 40,
        "dirty": False,
        "seconds": 1.0,
        "command": f"sf run {stage}",
        "hardware": {"cpu": "none", "cores": 0},
        "versions": {"torch": "none", "transformers": "none"},
    }
    (folder / "stage.json").write_text(json.dumps(stamp))


def write_previews(folder: Path, questions: dict[str, int]) -> None:
    """A picture and a text for each question."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(50):
        content = io.BytesIO()
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((128, 96), PIL.Image.Resampling.BICUBIC).save(content, "JPEG", quality=70)
        pictures.append(content.getvalue())
    lines = [
        {
            "benchmark": benchmark.name,
            "task": task.name,
            "doc_id": number,
            "question": f"What does the picture of question {number} show, and where? " * 3,
            "picture": pictures[number % len(pictures)],
            "places": json.dumps([[0, 0, 1, 0, 128, 96]]),
        }
        for benchmark in BENCHMARKS
        for task in benchmark.tasks
        for number in range(questions[task.name])
    ]
    write_stamp(folder, "previews")
    write_parquet(pd.DataFrame(lines), folder / "tables/previews.parquet")


def write_study(root: Path, models: int, rows: int, questions: int, report: Report) -> None:
    """All results; the folder has its name when it is complete."""
    root, final = root.with_name("part"), root
    asked = {t.name: questions // len(b.tasks) for b in BENCHMARKS for t in b.tasks}
    write_previews(root / "previews/all", asked)
    untrained, trained = methods_of(rows)
    names = [*untrained, *(f"{name}/seed0" for name in trained)]
    for model in range(models):
        report.begin(f"writing the evaluations of model {model + 1} of {models}")
        for row, name in enumerate(names):
            folder = root / f"evaluate/model{model}/{name}/all"
            chance = random.Random(f"{model} {row}")
            results = [
                BenchmarkResult(
                    benchmark,
                    {task.name: {} for task in benchmark.tasks},
                    {
                        task.name: list(samples(benchmark, task, asked[task.name], row, chance))
                        for task in benchmark.tasks
                    },
                )
                for benchmark in BENCHMARKS
            ]
            write_stamp(folder, "evaluate")
            write_csv(scores_table(results, 0), folder / "tables/scores.csv")
            write_json_lines(folder / "samples.jsonl", sample_lines(results))
    root.rename(final)


def built(root: Path, out: Path, page: str, models: int, rows: int) -> tuple[float, float]:
    """Seconds and GiB of one page, in a fresh process.

    The GiB are its own peak and, for each core, the peak of its largest child: an upper bound.
    """
    methods, objectives = methods_of(rows)
    names = [f"model{model}" for model in range(models)]
    given = (str(root), str(out), PAGES[page], names, methods, objectives)
    words = [sys.executable, "-c", PROGRAM, *map(json.dumps, given)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def main() -> None:
    """Write the results, build the pages, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps results and pages")
    arguments = parser.parse_args()
    models, rows = arguments.models, arguments.rows
    head = f"cpu, {models} models x {rows} rows x 14 benchmarks x {arguments.questions} questions"
    report = Report(head, arguments.json)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "results").exists():
            write_study(folder / "results", models, rows, arguments.questions, report)
        for page in PAGES:
            times, peaks = [], []
            for repeat in range(arguments.repeats):
                report.begin(f"{page}, repeat {repeat + 1} of {arguments.repeats}")
                out = folder / "pages" / page / str(repeat)
                seconds, peak = built(folder / "results", out, page, models, rows)
                times.append(seconds)
                peaks.append(peak)
            report.add(
                [
                    Row(f"{page}_seconds", *interval(times), "s", MAX_SECONDS, "lower"),
                    Row(f"{page}_peak_memory", *interval(peaks), "GiB", MAX_GIB, "lower"),
                ]
            )
    report.end()


if __name__ == "__main__":
    main()
