"""The tests that need a device: kernels, backends, the recorded decode loop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from table import Row, exact

from gpu_sections.scale import Scale

__all__ = ["LOG", "counts", "steps"]

ROOT = Path(__file__).parents[2]
FOLDERS = ("kernels", "backends", "decoding")
LOG = "gpu_session_tests.txt"
SECONDS = 80  # below the section's limit: a cut run still gives its counts
PROCESSES = 8  # kernels compile on the host, most of the time
_PLAIN = r"^tests/attention/(?P<folder>\w+)/\S.* (?P<result>PASSED|FAILED|ERROR|SKIPPED)\b"
_SPREAD = r"^\[gw\d+\] .*?(?P<result>PASSED|FAILED|ERROR|SKIPPED) tests/attention/(?P<folder>\w+)/"


def steps(scale: Scale, folder: Path) -> dict[str, Callable[[], list[Row]]]:
    """A single step, because all tests share the seconds of the imports."""
    return {"device tests": lambda: run(scale, folder)}


def run(scale: Scale, folder: Path) -> list[Row]:
    """Counts per folder of tests; pytest's output goes to a log beside the rows as it comes.

    Raises:
        RuntimeError: pytest collected nothing, or could not collect a file.
    """
    spread = [] if find_spec("xdist") is None or scale.rehearsal else ["-n", str(PROCESSES)]
    command = [
        *(sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *spread),
        *("--no-header", "-W", "ignore", *(f"tests/attention/{name}" for name in FOLDERS)),
    ]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    log = folder / LOG
    with log.open("w", encoding="utf-8") as out:
        try:
            subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=SECONDS * scale.patience,
                check=False,
            )
            cut = False
        except subprocess.TimeoutExpired:
            cut = True
    words = log.read_text(encoding="utf-8")
    # It is committed, and must not name the machine's folders.
    words = words.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
    words = words.replace(sys.executable, "python")
    log.write_text(words, encoding="utf-8")
    return counts(words, cut)


def counts(words: str, cut: bool) -> list[Row]:
    """Rows from the output of `pytest -v`.

    Args:
        words: the output, complete or not.
        cut: whether the run ended at its time limit.

    Raises:
        RuntimeError: see `run`.
    """
    counted: Counter[tuple[str, str]] = Counter()
    for pattern in (_PLAIN, _SPREAD):
        for line in re.finditer(pattern, words, re.MULTILINE):
            counted[line["folder"], line["result"]] += 1
    selected = (
        re.search(r"/ (\d+) selected", words)
        or re.search(r"collected (\d+) items", words)
        or re.search(r"\[(\d+) items\]", words)
    )
    if not counted or "errors during collection" in words or selected is None:
        raise RuntimeError(f"pytest collected no test, or not all: {words[-500:]}")
    rows = []
    for name in FOLDERS:
        bad = float(counted[name, "FAILED"] + counted[name, "ERROR"])
        rows += [
            exact(f"tests {name}, passed", float(counted[name, "PASSED"]), "tests"),
            Row(f"tests {name}, failed", bad, bad, bad, "tests", 0.0, "lower"),
            exact(f"tests {name}, skipped", float(counted[name, "SKIPPED"]), "tests"),
        ]
    missing = float(int(selected[1]) - sum(counted.values()))
    why = ", out of time" if cut else ""
    return [*rows, Row(f"tests not reached{why}", missing, missing, missing, "tests", 0.0, "lower")]
