"""Figures of the measurements: latency, memory, and prefill time by part."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sf.plotting import figure, in_style, look, marks, note, rows_figure
from sf.profiling.summary import MEASURED, PROCESSOR, break_even

__all__ = ["latency_picture", "memory_picture", "parts_picture"]

SIDES = {"full": ("full", "full attention"), "sparse": ("sparsity_forcing", "sparse attention")}
PARTS = {  # parts of the first token's time in execution order, in Okabe and Ito's colours
    "processor": "#0072B2",
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
    """8k for 8,192, 200k for 200,000, and 2,004 for other numbers."""
    for thousand in (1024, 1000):
        if value >= thousand and value % thousand == 0:
            return f"{value / thousand:g}k"
    return f"{value:,.0f}"


def _heading(table: pd.DataFrame, model: str) -> str:
    """The model with its kind of weights and the tokens that its sparse side keeps."""
    part = table[table["model"] == model]
    kept = part[part["side"] == "sparse"]["token_ratio"].dropna()
    shares = sorted({f"{100 * share:.0f}" for share in (kept.min(), kept.max())}, key=float)
    kept_share = f", sparse keeps {' to '.join(shares)} % of the tokens" if len(kept) else ""
    return f"{model} ({part['weights'].iloc[0]} weights{kept_share})"


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
        measured = part[part["status"] == MEASURED]
        style = look(system)
        marks(
            axes,
            measured["length"] * (0.985 if side == "full" else 1.015),  # bars side by side
            measured["value"] / unit,
            (measured["low"] / unit, measured["high"] / unit),
            style,
            label + (_dense(table) if side == "full" else ""),
        )
        for length in part[part["status"] != MEASURED]["length"]:
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


def _dense(table: pd.DataFrame) -> str:
    """The names of the dense attention, one or several in order of length."""
    names = [str(name) for name in table.sort_values("length")["dense"].dropna().unique() if name]
    return f"\n({', '.join(names)})" if names else ""


@in_style
def latency_picture(table: pd.DataFrame, ratios: pd.DataFrame, where: str) -> Figure:
    """Prefill and decode times and their speed-ups against prompt length, a row per model.

    Args:
        table: from `sf.profiling.summary.tidy`.
        ratios: from `sf.profiling.summary.speedups`.
        where: device and origin of the token ratio.
    """
    models = list(dict.fromkeys(table["model"]))
    fig, axes = rows_figure([_heading(table, name) for name in models], 3, 12.0, 3.7)
    for row, model in zip(axes, models, strict=True):
        part = table[table["model"] == model]
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
        row[0].legend(loc="best")
        _speedup(row[2], ratios[ratios["model"] == model], lengths)
        for panel in row:
            panel.set_xlabel("prompt length (tokens)")
    note(fig, f"{where}; bars: intervals of the median")
    return fig


def _token(table: pd.DataFrame) -> str:
    """The metric of the decode loop's time if measured, else that of generate."""
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
        shift = 0.985 if metric == "prefill_ms" else 1.015
        part = ratios[ratios["metric"] == metric].sort_values("length")
        tokens = break_even(part, metric)
        start = "not faster here" if tokens is None else f"faster from {_length(tokens)}"
        label = f"{label}: {start}"
        interval = part["low"], part["high"]
        marks(axes, part["length"] * shift, part["ratio"], interval, look(system), label)
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
    """KV-cache bytes and peaks against prompt length, a row per model."""
    models = list(dict.fromkeys(table["model"]))
    fig, axes = rows_figure([_heading(table, name) for name in models], 3, 12.0, 3.7)
    panels = (
        ("kv_bytes", "KV cache", "keys and values (MiB)"),
        ("peak_prefill_bytes", "Peak in prefill", "above the weights (MiB)"),
        ("held_decode_bytes", "Held in decoding", "above the weights (MiB)"),
    )
    for row, model in zip(axes, models, strict=True):
        part = table[table["model"] == model]
        for panel, (metric, title, label) in zip(row, panels, strict=True):
            _sides(panel, part, metric, MIB)
            _length_axis(panel, sorted(set(part["length"])))
            _plain_log_y(panel)
            panel.set(title=title, ylabel=label, xlabel="prompt length (tokens)")
        row[0].legend(loc="lower right")
    note(fig, f"{where}; memory of torch's allocator")
    return fig


@in_style
def parts_picture(table: pd.DataFrame, where: str) -> Figure | None:
    """The first token's time by part, stacked, full next to sparse; None without such lines.

    With media, the bars start with the processor's time on the CPU, equal for both sides.
    """
    names = {PROCESSOR: "processor"}
    names |= {f"prefill_{part}_ms": part for part in PARTS if part != "processor"}
    # A part without any time (the tower, for text prompts) has no legend entry.
    taken = table[table["value"] > 0]["metric"].unique()
    names = {metric: part for metric, part in names.items() if metric in taken}
    table = table[table["metric"].isin(list(names))]
    if table.empty:
        return None
    models = list(dict.fromkeys(table["model"]))
    fig, axes = figure(6.0 * len(models), 4.2, columns=len(models))
    for panel, model in zip(axes[0], models, strict=True):
        part = table[table["model"] == model]
        _stacks(panel, part, sorted(set(part["length"])), names)
        panel.set(
            title=f"Time to the first token by part\n{model}",
            ylabel="share of the full side's time (%)",
            xlabel="prompt length (tokens)",
        )
    # From top to bottom as in the bars.
    handles = [Patch(color=PARTS[part], label=part) for part in reversed(names.values())]
    handles += [
        Patch(facecolor="white", edgecolor="#555555", label="left: full"),
        Patch(facecolor="white", edgecolor="#555555", hatch="//", label="right: sparse"),
    ]
    axes[0][-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    note(fig, f"{where}; above the bars: total time, sum of the parts' medians")
    return fig


def _stacks(axes: Axes, table: pd.DataFrame, lengths: list[int], names: dict[str, str]) -> None:
    highest = 100.0
    for at, length in enumerate(lengths):
        at_length = table[table["length"] == length]
        whole = at_length[at_length["side"] == "full"]["value"].sum()
        if not whole:  # the full side did not fit: shares of the sparse side's time
            whole = at_length[at_length["side"] == "sparse"]["value"].sum()
        for shift, side in ((-0.2, "full"), (0.2, "sparse")):
            values = at_length[at_length["side"] == side].set_index("metric")["value"]
            if values.empty:
                axes.annotate(
                    f"{side}: does not fit", (at + shift, 2.0), rotation=90, ha="center", fontsize=8
                )
                continue
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
                )
                bottom += share
            axes.annotate(
                _duration(values.sum()), (at + shift, bottom + 1.5), ha="center", fontsize=8
            )
            highest = max(highest, bottom)
    axes.set_ylim(0, 1.1 * highest)
    axes.set_xticks(range(len(lengths)), [_length(length) for length in lengths])
    axes.grid(axis="x", visible=False)


def _duration(ms: float) -> str:
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"
