"""Pictures of what profiling measured: latency, memory, and where prefill time goes."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sf.profiling.summary import break_even
from sf.report.style import figure, in_style, look, note, rows_figure

__all__ = ["latency_picture", "memory_picture", "parts_picture"]

SIDES = {"full": ("full", "full attention"), "sparse": ("sparsity_forcing", "sparse attention")}
PARTS = {  # prefill's parts in the order of the forward pass, Okabe and Ito's colours
    "vision": "#CC79A7",
    "projections": "#56B4E9",
    "selection": "#D55E00",
    "attention": "#E69F00",
    "pruning": "#F0E442",
    "mlp": "#009E73",
    "other": "#BBBBBB",
}
MIB = 2.0**20


def _length(value: float, _: object = None) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _length_axis(axes: Axes, lengths: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths)
    axes.xaxis.set_major_formatter(FuncFormatter(_length))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain_log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _sides(axes: Axes, table: pd.DataFrame, metric: str, unit: float) -> None:
    for side, (system, label) in SIDES.items():
        part = table[(table["side"] == side) & (table["metric"] == metric)].sort_values("length")
        measured = part[part["status"] == "measured"]
        style = look(system)
        below = (measured["value"] - measured["low"]).fillna(0.0) / unit
        above = (measured["high"] - measured["value"]).fillna(0.0) / unit
        axes.errorbar(
            measured["length"],
            measured["value"] / unit,
            yerr=[below, above],
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            capsize=3,
            label=label,
        )
        for length in part[part["status"] != "measured"]["length"]:
            axes.axvline(length, color=style.colour, linestyle=":", linewidth=1)
            axes.annotate(
                f"{label}: does not fit",
                (length, 0.5),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="center",
                fontsize=8,
                color=style.colour,
            )


@in_style
def latency_picture(table: pd.DataFrame, ratios: pd.DataFrame, where: str) -> Figure:
    """Prefill and decode times and their speed-ups against prompt length, a row per subject.

    Args:
        table: of `sf.profiling.summary.tidy`.
        ratios: of `sf.profiling.summary.speedups`.
        where: device and how the ratio was set.
    """
    subjects = list(dict.fromkeys(table["subject"]))
    fig, axes = rows_figure(subjects, 3, 12.0, 3.7)
    for row, subject in zip(axes, subjects, strict=True):
        part = table[table["subject"] == subject]
        lengths = sorted(set(part["length"]))
        for panel, metric, title, label in (
            (row[0], "prefill_ms", "Time to the first token", "prefill (ms)"),
            (row[1], _token(part), _title(part), "decode (ms per token)"),
        ):
            _sides(panel, part, metric, 1.0)
            _length_axis(panel, lengths)
            panel.set(title=title, ylabel=label)
        _plain_log_y(row[0])
        row[1].set_ylim(bottom=0)
        row[0].legend(loc="lower right")
        _speedup(row[2], ratios[ratios["subject"] == subject], lengths)
        for panel in row:
            panel.set_xlabel("prompt length (tokens)")
    note(fig, f"{where}; bars: intervals of the median")
    return fig


def _token(table: pd.DataFrame) -> str:
    """The decode loop's time where it was measured, else that of generate."""
    return "step_ms" if (table["metric"] == "step_ms").any() else "decode_ms"


def _title(table: pd.DataFrame) -> str:
    loop = _token(table) == "step_ms"
    return f"Time per further token{' (decode loop)' if loop else ''}"


def _speedup(axes: Axes, ratios: pd.DataFrame, lengths: list[int]) -> None:
    axes.axhspan(0.0, 1.0, color="#f2f2f2", zorder=0)
    for metric, system, label in (
        ("prefill_ms", "sparsity_forcing", "prefill"),
        (_token(ratios), "base", "decode"),
    ):
        part = ratios[ratios["metric"] == metric].sort_values("length")
        tokens = break_even(part, metric)
        start = "not faster here" if tokens is None else f"faster from {_length(tokens)}"
        label = f"{label}: {start}"
        style = look(system)
        axes.errorbar(
            part["length"],
            part["ratio"],
            yerr=[part["ratio"] - part["low"], part["high"] - part["ratio"]],
            color=style.colour,
            marker=style.marker,
            capsize=3,
            label=label,
        )
    axes.axhline(1.0, color="#555555", linewidth=1, linestyle="--")
    _length_axis(axes, lengths)
    axes.set_ylim(bottom=0, top=1.35 * max(1.5, axes.get_ylim()[1]))  # room for the legend
    axes.annotate(
        "sparse is slower", (0.5, 0.03), xycoords="axes fraction", ha="center", fontsize=8
    )
    axes.set(title="Speed-up over full attention", ylabel="full / sparse (times)")
    axes.legend(loc="upper left")


@in_style
def memory_picture(table: pd.DataFrame, where: str) -> Figure:
    """KV-cache bytes and peaks against prompt length, a row per subject."""
    subjects = list(dict.fromkeys(table["subject"]))
    fig, axes = rows_figure(subjects, 3, 12.0, 3.7)
    panels = (
        ("kv_bytes", "KV cache", "keys and values (MiB)"),
        ("peak_prefill_bytes", "Peak in prefill", "above the weights (MiB)"),
        ("held_decode_bytes", "Held in decoding", "above the weights (MiB)"),
    )
    for row, subject in zip(axes, subjects, strict=True):
        part = table[table["subject"] == subject]
        for panel, (metric, title, label) in zip(row, panels, strict=True):
            _sides(panel, part, metric, MIB)
            _length_axis(panel, sorted(set(part["length"])))
            _plain_log_y(panel)
            panel.set(title=title, ylabel=label, xlabel="prompt length (tokens)")
        row[0].legend(loc="lower right")
    note(fig, f"{where}; bytes that torch's allocator held")
    return fig


@in_style
def parts_picture(table: pd.DataFrame, where: str) -> Figure | None:
    """Prefill time by part of the model, stacked, full beside sparse; None without such lines."""
    names = {f"prefill_{part}_ms": part for part in PARTS}
    # A part that takes no time anywhere (no tower for text) is no entry of the legend.
    taken = table[table["value"] > 0]["metric"].unique()
    names = {metric: part for metric, part in names.items() if metric in taken}
    table = table[table["metric"].isin(list(names))]
    if table.empty:
        return None
    subjects = list(dict.fromkeys(table["subject"]))
    fig, axes = figure(6.0 * len(subjects), 4.0, columns=len(subjects))
    for panel, subject in zip(axes[0], subjects, strict=True):
        part = table[table["subject"] == subject]
        _stacks(panel, part, sorted(set(part["length"])), names)
        panel.set(
            title=subject,
            ylabel="share of the full side's prefill (%)",
            xlabel="prompt length (tokens); left bar full, right bar sparse",
        )
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    note(fig, where)
    return fig


def _stacks(axes: Axes, table: pd.DataFrame, lengths: list[int], names: dict[str, str]) -> None:
    for at, length in enumerate(lengths):
        here = table[table["length"] == length]
        whole = here[here["side"] == "full"]["value"].sum()
        for shift, side in ((-0.2, "full"), (0.2, "sparse")):
            values = here[here["side"] == side].set_index("metric")["value"]
            bottom = 0.0
            for metric, part in names.items():
                share = 100.0 * float(values.get(metric, 0.0)) / whole
                axes.bar(
                    at + shift,
                    share,
                    width=0.36,
                    bottom=bottom,
                    color=PARTS[part],
                    hatch="//" if side == "sparse" else None,
                    edgecolor="white",
                    label=part if at == 0 and side == "full" else None,
                )
                bottom += share
    axes.set_xticks(range(len(lengths)), [_length(length) for length in lengths])
    axes.grid(axis="x", visible=False)
