"""The paper's figures 4c and 4d, measured on a GPU: prefill time and memory by prompt length.

`make gpu` writes `gpu.csv`, next to this file, from `reports/measured`; without a GPU it has only a
header, and the cells are "not measured".
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sf.plotting import figure, in_style, look, note, save
from sf.report import published
from sf.report.benchmark_tables import NOT_MEASURED, Cell
from sf.report.page import Picture, Section, Table

__all__ = ["gpu_section", "measured_on_gpus"]

SHAPE = "Qwen2.5-VL-7B's shape, random weights, bfloat16, token ratio 0.25"
PANELS = (  # metric, title, axis label
    ("prefill_ms", "4c: prefill", "time to the first token (ms)"),
    ("kv_gib", "4d: KV cache in decoding", "keys and values (GiB)"),
    ("decode_memory_gib", "4d: memory in decoding", "allocated, weights included (GiB)"),
)
LENGTHS = (16384, 32768, 65536, 131072, 200_000)
SIDES = {"dense": "full", "sparse": "sparsity_forcing"}
BATCHES = {
    "equal batch": "both at the largest batch of full caches",
    "own batch": "each at its largest batch",
}


def measured_on_gpus() -> pd.DataFrame:
    """device, metric, side, length, value, low, high, unit, commit, date; empty without a GPU."""
    return pd.read_csv(Path(__file__).with_name("gpu.csv"))


def gpu_section(table: pd.DataFrame, folder: Path) -> Section:
    """A table for every device, and a figure if anything was measured.

    Args:
        table: from `measured_on_gpus`.
        folder: of the report.
    """
    devices = list(dict.fromkeys(table["device"])) or ["GPU"]
    text = [
        f"{SHAPE}. The paper's ratios at 200k tokens: decode throughput "
        f"{published.at_200k('decode_speedup')[0]:g} times, KV memory full / sparse "
        f"{published.at_200k('memory_ratio')[0]:g}."
    ]
    for line in table[table["metric"] == "throughput_gain"].to_dict("records"):
        text.append(
            f"{line['device']}: decode throughput at {line['length']:,} tokens "
            f"{line['value']:.2f} times that of full attention, {BATCHES[line['side']]} "
            f"(commit {str(line['commit'])[:8]}, {line['date']})."
        )
    pictures = []
    if table.empty:
        text.append("Not measured: this copy contains no GPU figures.")
    else:
        save(gpu_picture(table), folder / "figures", "gpu_figure4")
        pictures.append(Picture("gpu_figure4", "Figures 4c and 4d on a GPU."))
    tables = [_table(table[table["device"] == device], device) for device in devices]
    return Section("Figures 4c and 4d on a GPU", text=text, tables=tables, pictures=pictures)


def _table(part: pd.DataFrame, device: str) -> Table:
    header = ["prompt"]
    for _, title, what in PANELS:
        header += [f"{title}, {what}, dense", "sparse", "dense / sparse"]
    lengths = sorted({*LENGTHS, *part["length"]})
    values = {
        (line["metric"], line["side"], line["length"]): line for line in part.to_dict("records")
    }
    rows = []
    for length in lengths:
        row = [Cell(f"{length:,}")]
        for metric, *_ in PANELS:
            both = [values.get((metric, side, length)) for side in SIDES]
            for line in both:
                if line is None:
                    row.append(Cell(NOT_MEASURED))
                    continue
                source = f"commit {str(line['commit'])[:8]}, {line['date']}"
                row.append(Cell(f"{line['value']:.3g}", note=source))
            dense, sparse = both
            if dense is None or sparse is None:
                row.append(Cell(NOT_MEASURED))
            else:
                row.append(Cell(f"{dense['value'] / sparse['value']:.2f}"))
        rows.append(row)
    name = "gpu_" + "".join(c if c.isalnum() else "_" for c in device.lower())
    return Table(name=name, caption=f"{device}: {SHAPE}", header=header, rows=rows)


@in_style
def gpu_picture(table: pd.DataFrame) -> Figure:
    """A row of panels per device."""
    devices = list(dict.fromkeys(table["device"]))
    fig, axes = figure(12.0, 3.9 * len(devices), columns=len(PANELS), rows=len(devices))
    for row, device in zip(axes, devices, strict=True):
        for panel, (metric, title, what) in zip(row, PANELS, strict=True):
            for side, system in SIDES.items():
                chosen = (table["device"] == device) & (table["metric"] == metric)
                part = table[chosen & (table["side"] == side)].sort_values("length")
                style = look(system)
                panel.plot(
                    part["length"] / 1000,
                    part["value"],
                    color=style.colour,
                    marker=style.marker,
                    linestyle=style.line,
                    label=side,
                )
            panel.set(title=title, ylabel=what, xlabel="prompt length (thousand tokens)")
            panel.set_ylim(bottom=0)
        row[0].legend(loc="upper left")
    note(fig, f"{', '.join(devices)}; {SHAPE}")
    return fig
