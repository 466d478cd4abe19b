"""From measured rows to README's table and the report's figures 4c and 4d; needs no device.

The source is `reports/measured/DEVICE/gpu_session.json`. README's table stands between two marks;
`sf/report/gpu.csv` contains the data that the report draws. Both are rewritten completely: figures
without a measurement become "not measured", and rehearsals are never copied.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from gpu_sections.journal import ROWS
from sf.atomic_files import write_text

__all__ = ["carry", "csv_text", "measured", "readme_table"]

NOT_MEASURED = "not measured"
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
COLUMNS = ("device", "metric", "side", "length", "value", "low", "high", "unit", "commit", "date")
# What the report draws: metric by the pattern of a row's name.
DRAWN = {
    "prefill_ms": r"prefill (\d+) (dense|sparse)",
    "decode_memory_gib": r"memory (\d+) (dense|sparse)",
    "kv_gib": r"KV (\d+) (dense|sparse)",
    "token_ms": r"token (\d+) (dense|sparse)",
    "throughput_gain": r"throughput (\d+), (equal batch|own batch), sparse over dense",
}
# Of other sections than "model"; the layer's prefill rows have the same names as the model's.
SECTIONS = {"prefill_ms": "prefill", "throughput_gain": "throughput"}
# README's lines: title, target, section, pattern of a row's name, form of the value.
SHOWN = (
    ("prefill attention with selection over the quickest dense kernel, 65,536 tokens", "≥ 8 \u00d7",
     "attention", r"prefill 65536 sparse.* over dense .*", "{:.1f} \u00d7"),
    ("the same at 131,072 tokens", "≥ 10 \u00d7",
     "attention", r"prefill 131072 sparse.* over dense .*", "{:.1f} \u00d7"),
    ("selection's share of it at 131,072 tokens", "≤ 20 %",
     "attention", r"prefill 131072 selection's share", "{:.0%}"),
    ("a token of the decode loop over its byte floor, 131,072 tokens", "≤ 1.2 \u00d7",
     "model", r"token 131072 sparse over its floor", "{:.2f} \u00d7"),
    ("whole model's prefill over dense, 131,072 tokens", "≥ 2.3 \u00d7",
     "prefill", r"prefill 131072 sparse over dense", "{:.1f} \u00d7"),
    ("decode throughput over dense, 200,000 tokens, equal batch", "≥ 3.3 \u00d7",
     "throughput", r"throughput 200000, equal batch, sparse over dense", "{:.1f} \u00d7"),
    ("the same, each at its largest batch", "≥ 3.3 \u00d7",
     "throughput", r"throughput 200000, own batch, sparse over dense", "{:.1f} \u00d7"),
    ("KV cache beside dense, 200,000 tokens", "≤ 0.27 \u00d7",
     "throughput", r"throughput 200000 KV", "{:.2f} \u00d7"),
)  # fmt: skip


def carry(root: Path) -> None:
    """Rewrite README's table and the report's data from every device's rows.

    Args:
        root: of the repository.

    Raises:
        ValueError: README lacks the marks.
    """
    figures = measured(root / "reports" / "measured")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme}: one {BEGIN} and one {END} are needed")
    before, rest = text.split(BEGIN)
    write_text(readme, f"{before}{BEGIN}\n{readme_table(figures)}\n{END}{rest.split(END)[1]}")
    write_text(root / "sf" / "report" / "gpu.csv", csv_text(figures))


def measured(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each device, by its name, without rehearsals."""
    rows_by_device: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob(f"*/{ROWS}")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            if not row["rehearsal"]:
                rows_by_device.setdefault(row["device"], []).append(row)
    return rows_by_device


def readme_table(rows_by_device: Mapping[str, list[dict[str, Any]]]) -> str:
    """A line per target, a column per device."""
    devices = list(rows_by_device) or ["GPU"]
    lines = [f"| Qwen2.5-VL-7B's shape, bf16, token ratio 0.25 | target | {' | '.join(devices)} |"]
    lines.append(f"|---|---:|{'---:|' * len(devices)}")
    for title, target, section, pattern, form in SHOWN:
        cells = [
            _cell(rows_by_device.get(device, []), section, pattern, form) for device in devices
        ]
        lines.append(f"| {title} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]], section: str, pattern: str, form: str) -> str:
    """The figure with its interval; if several rows match, the one that has the target."""
    fitting = [
        row for row in rows if row["section"] == section and re.fullmatch(pattern, row["name"])
    ]
    fitting = [row for row in fitting if row["target"] is not None] or fitting
    if not fitting:
        return NOT_MEASURED
    row = fitting[-1]
    text = form.format(row["value"])
    if row["low"] is None or row["low"] == row["high"]:
        return text
    return f"{text} ({form.format(row['low'])} to {form.format(row['high'])})"


def csv_text(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """The report's data: a line per device, metric, side and length."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for device, rows in found.items():
        for metric, pattern in DRAWN.items():
            for row in rows:
                fits = re.fullmatch(pattern, row["name"])
                if fits is None or row["section"] != SECTIONS.get(metric, "model"):
                    continue
                values = [row[name] for name in ("value", "low", "high", "unit", "commit", "date")]
                writer.writerow([device, metric, fits[2], fits[1], *values])
    return out.getvalue()
