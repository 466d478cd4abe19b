"""The report's part on latency and memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.profiling.summary import MEASURED, NO_DIFFERENCE, three_digits
from sf.report import published
from sf.report.benchmark_tables import NOT_MEASURED, Cell
from sf.report.page import Picture, Section, Table
from sf.report.results import Result, Study

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["profile_sections"]

PROFILE_TEXT = (
    "Both sides run in one process, interleaved, on the same prompts of random text. The dense "
    "side is the device's fastest dense attention at each length, named in the column 'dense by', "
    "with a cache that grows in place. 'No difference': the interval of the ratio contains 1. "
    "Peaks are bytes above the weights."
)
METRICS = {  # table -> metric -> title, and its unit in terms of the stored unit
    "times": {
        "prefill_ms": ("prefill (ms)", 1.0),
        "decode_ms": ("generate (ms per token)", 1.0),
        "step_ms": ("decode loop (ms per token)", 1.0),
    },
    "memory": {
        "kv_bytes": ("KV cache (MiB)", 2.0**20),
        "peak_prefill_bytes": ("peak in prefill (MiB)", 2.0**20),
        "held_decode_bytes": ("held in decoding (MiB)", 2.0**20),
    },
}
RATIO = "ratio"
PAPER_LENGTH = 200_000


def profile_sections(study: Study, folder: Path) -> list[Section]:
    tables, pictures, notes, text = [], [], [], [PROFILE_TEXT]
    for model in study.models:
        result = study.result("profile", model=model)
        if result is None:
            continue
        tables += [
            *_tables(result, model),
            roofline(result, model),
            beside_the_paper(result, model),
        ]
        text += [f"{model}, {sentence}" for sentence in _break_even(result)]
        facts = json.loads((result.folder / "hardware.json").read_text(encoding="utf-8"))
        notes += [f"{model}: {note}." for note in facts["notes"]]
        for name, caption in (
            ("latency", "Latency against prompt length."),
            ("memory", "Memory against prompt length."),
            ("parts", "Prefill time by part."),
        ):
            source = result.folder / "figures" / f"{name}.png"
            if source.is_file():
                target = f"{name}_{model}"
                _copy(source, folder, target)
                pictures.append(Picture(target, f"{model}: {caption}"))
    if not tables:
        text = ["Not measured: no profile of this study was found."]
    return [Section("Latency and memory", text=text, notes=notes, tables=tables, pictures=pictures)]


def roofline(result: Result, model: str) -> Table:
    """The decoder's floor, time and achieved share, for prefill and a token of the decode loop."""
    table = result.table("roofline.csv")
    rows = []
    for line in table[table["part"] == "whole"].to_dict("records"):
        share = f"{100 * line['share']:.3g}"
        rows.append(
            [
                Cell(str(line["model"])),
                Cell(f"{line['length']:,}"),
                Cell(str(line["phase"])),
                Cell(str(line["side"])),
                Cell(f"{line['flops']:.3g}"),
                Cell(f"{line['bytes']:.3g}"),
                Cell(f"{line['floor_ms']:.3g}", note=f"bound by {line['bound']}"),
                Cell(f"{line['measured_ms']:.3g}"),
                Cell(share),
            ]
        )
    return Table(
        name=f"roofline_{model}",
        caption=f"{model}: share of the roofline, all parts in tables/roofline.csv "
        f"(run {result.run})",
        header=[
            *("profiled model", "prompt", "phase", "side"),
            *("FLOPs", "bytes", "floor (ms)", "measured (ms)", "share (%)"),
        ],
        rows=rows,
        keys=4,
    )


def beside_the_paper(result: Result, model: str) -> Table:
    """The paper's two ratios at 200k tokens, and the ratios measured here.

    The GPU column is filled only by a GPU profile with a length of at least 200,000 tokens.
    """
    table = result.table("speedup.csv")
    facts = json.loads((result.folder / "hardware.json").read_text(encoding="utf-8"))
    on_gpu = facts.get("device") == "cuda"
    rows = []
    for profiled in dict.fromkeys(table["model"]):
        for title, name, metric in (
            ("decode throughput, sparse / full", "decode_speedup", "step_ms"),
            ("KV memory, full / sparse", "memory_ratio", "kv_bytes"),
        ):
            value, owner = published.at_200k(name)
            part = table[(table["model"] == profiled) & (table["metric"] == metric)]
            at_200k = part[part["length"] >= PAPER_LENGTH].to_dict("records") if on_gpu else []
            longest = part[part["length"] == part["length"].max()].to_dict("records")
            row = [Cell(profiled), Cell(title), Cell(f"{value:g}", note=f"{owner}, figure 4")]
            row.append(_ratio(at_200k[-1]) if at_200k else Cell(NOT_MEASURED))
            row.append(Cell(f"{longest[0]['length']:,}" if longest else ""))
            row.append(_ratio(longest[0]) if longest else Cell(NOT_MEASURED))
            rows.append(row)
    return Table(
        name=f"beside_paper_{model}",
        caption=f"{model}: the paper's ratios at 200k tokens (run {result.run})",
        header=[
            "profiled model",
            "figure",
            "paper",
            "here, GPU at 200k",
            "longest here",
            "ratio there",
        ],
        rows=rows,
        keys=2,
    )


def _copy(source: Path, folder: Path, name: str) -> None:
    for suffix in (".png", ".svg"):
        shutil.copyfile(source.with_suffix(suffix), folder / "figures" / f"{name}{suffix}")


def _tables(result: Result, model: str) -> list[Table]:
    """Times and bytes, full and sparse side by side, a row per model and length."""
    points: dict[tuple[str, int], dict[tuple[str, str], Any]] = {}
    for line in result.table("profile.csv").to_dict("records"):
        point = points.setdefault((str(line["model"]), int(line["length"])), {})
        point[str(line["metric"]), str(line["side"])] = line
    ratios = result.table("speedup.csv").to_dict("records")
    for line in ratios:
        points[str(line["model"]), int(line["length"])][str(line["metric"]), RATIO] = line
    basis = f"kept tokens set by {ratios[0]['ratio_set_by']}" if ratios else "no length fitted"
    tables = []
    for name, metrics in METRICS.items():
        header = ["profiled model", "prompt", "dense by"]
        for title, _ in metrics.values():
            header += [f"{title}, full", "sparse", "full / sparse"]
        rows = []
        for (profiled, length), point in points.items():
            row = [Cell(profiled), Cell(f"{length:,}"), Cell(_dense(point))]
            for metric, (_, unit) in metrics.items():
                row += [_measure(point.get((metric, side)), unit) for side in ("full", "sparse")]
                row.append(_ratio(point.get((metric, RATIO))))
            rows.append(row)
        tables.append(
            Table(
                name=f"{name}_{model}",
                caption=f"{model}, {name}: {basis} (run {result.run})",
                header=header,
                rows=rows,
                keys=3,
            )
        )
    return tables


def _dense(point: dict[tuple[str, str], Any]) -> str:
    """The dense attention of the full side; empty if it did not fit."""
    name = next(iter(point.values()))["dense"]
    return name if isinstance(name, str) else ""


def _measure(line: Any, unit: float) -> Cell:
    if line is None:
        return Cell(NOT_MEASURED)
    if line["status"] != MEASURED:
        return Cell(line["status"])
    return Cell(three_digits(line["value"] / unit))


def _ratio(line: Any) -> Cell:
    """A ratio with its interval; "no difference" if the interval contains 1."""
    if line is None:
        return Cell("")
    if str(line["metric"]).endswith("_bytes"):
        return Cell(f"{line['ratio']:.2f}", note="counted, not timed")
    same = line["verdict"] == NO_DIFFERENCE
    return Cell(
        NO_DIFFERENCE if same else f"{line['ratio']:.2f}",
        f"{line['low']:.2f} to {line['high']:.2f}",
        f"median {line['ratio']:.2f}; the interval covers {100 * line['coverage']:.1f} %",
    )


def _break_even(result: Result) -> list[str]:
    """One sentence per model: the prompt length from which sparse attention is faster."""
    table = result.table("profile.csv")
    figures = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
    sentences = []
    for profiled in dict.fromkeys(table["model"]):
        words = []
        for metric, phrase in (("prefill_ms", "prefill"), ("step_ms", "decoding")):
            tokens = figures.get(f"{profiled}_{metric}_break_even_tokens")
            words.append(
                f"{phrase} from {tokens:,.0f} tokens on"
                if tokens is not None
                else f"{phrase} at no measured length"
            )
        sentences.append(f"{profiled}: sparse attention is faster in {', in '.join(words)}.")
    return sentences + _plain_transformers(table)


def _plain_transformers(table: pd.DataFrame) -> list[str]:
    """The time with transformers' cache compared with the dense side, if measured."""
    decode = table[(table["metric"] == "decode_ms") & (table["status"] == MEASURED)]
    times = {
        (str(line["model"]), int(line["length"]), str(line["side"])): float(line["value"])
        for line in decode.to_dict("records")
    }
    return [
        f"{profiled}: at {length:,} tokens, a token takes {value:.3g} ms with transformers' own "
        f"cache and {times[profiled, length, 'full']:.3g} ms on the dense side."
        for (profiled, length, side), value in times.items()
        if side == "transformers" and (profiled, length, "full") in times
    ]
