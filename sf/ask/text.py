"""An answer as text for a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sf.ask.answer import AskResult
from sf.evaluation.layer_groups import group_names, layer_groups

__all__ = ["render"]

BAR = 24


def render(result: AskResult, console: Console) -> Group:
    """The reply, the kept tokens and the cost.

    Args:
        result: from `sf.ask.answer`.
        console: its encoding determines the characters of the bars.
    """
    reply = Text(result.reply or "(an empty reply)", style="bold")
    if result.cut:
        reply.append(f" ... (cut after {result.completion_tokens} tokens)", style="dim")
    return Group(reply, "", _facts(result), "", _layers(result, console.options.ascii_only))


def _facts(result: AskResult) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    time, rows, cols = result.grid
    cells = f"{rows} x {cols}" if time == 1 else f"{time} x {rows} x {cols}"
    text = result.prompt_tokens - result.visual_tokens
    table.add_row(
        "prompt",
        f"{result.prompt_tokens} tokens: {result.visual_tokens} visual ({cells}), {text} text",
    )
    kept = f"{_percent(result.token_ratio)} of the prompt kept, mean over layers"
    if result.retention_p is not None:
        kept += f" (p = {result.retention_p:.4g})"
    if result.requested_token_ratio is not None:
        kept += f"; requested: {_percent(result.requested_token_ratio)}"
    table.add_row("token ratio", kept)
    share = result.kv_bytes / result.dense_kv_bytes
    table.add_row(
        "KV cache",
        f"{_bytes(result.kv_bytes)}, {_percent(share)} of the dense {_bytes(result.dense_kv_bytes)}"
        f" (allocated: {_bytes(result.kv_allocated_bytes)})",
    )
    further = "" if result.token_ms is None else f", then {_ms(result.token_ms)} per token"
    table.add_row("time", f"first token after {_ms(result.first_token_ms)}{further} (no warm-up)")
    return table


def _layers(result: AskResult, ascii_only: bool) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for name in ("kept tokens", "", "all", "visual", "text"):
        table.add_column(name, justify="left" if name in ("kept tokens", "") else "right")
    groups = layer_groups(len(result.layer_ratios))
    names = group_names(groups)
    every = range(len(result.layer_ratios))
    for name, group in zip([*names, "all layers"], [*groups, every], strict=True):
        shares = [
            sum(ratios[layer] for layer in group) / len(group)
            for ratios in (result.layer_ratios, result.visual_ratios, result.text_ratios)
        ]
        table.add_row(name, _bar(shares[0], ascii_only), *(_percent(share) for share in shares))
    return table


def _bar(share: float, ascii_only: bool) -> str:
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    count = round(BAR * share)
    return full * count + empty * (BAR - count)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ms(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.1f} KiB"
