"""The report's part on a second question with the pruned cache."""

from __future__ import annotations

import pandas as pd

from sf.report.benchmark_tables import Cell
from sf.report.page import Section, Table
from sf.report.results import Study

__all__ = ["two_turn_sections"]

_HEADER = [
    "model",
    "checkpoint",
    "p",
    "token ratio (%)",
    "dense",
    "whole KV",
    "pruned",
    "re-read",
]
_TEXT = (
    "Two consecutive held-out questions about one image or video. Accuracy (%) on the second: with "
    "full attention; with top-p but the K and V of all tokens kept; with those of the dropped "
    "tokens discarded; with the conversation read again. Differences are paired; intervals are "
    "bootstrapped over images and videos."
)


def two_turn_sections(study: Study) -> list[Section]:
    """One section with a line per model, checkpoint and threshold; none without results."""
    rows = []
    for result in study.everything():
        if result.kind == "accuracy_curve" and study.shown(result):
            second_questions = result.table("two_turn.csv")
            rows += [_line(result.axes, line) for _, line in second_questions.iterrows()]
    if not rows:
        return []
    header = [*_HEADER, "pruned - whole", "pruned - dense", "pairs"]
    table = Table("two_turn", "Second questions on a pruned cache", header, rows, keys=3)
    return [Section("A second question after pruning", text=[_TEXT], tables=[table])]


def _line(axes: dict[str, str], line: pd.Series) -> list[Cell]:
    shares = [line["token_ratio"], *(line[arm] for arm in ("dense", "whole", "pruned", "anew"))]
    return [
        Cell(axes["model"]),
        Cell(axes["row"]),
        Cell(f"{line['retention_p']:g}"),
        *(Cell(f"{100 * share:.1f}") for share in shares),
        *(
            Cell(
                f"{100 * line[name]:+.1f}",
                f"{100 * line[f'{name}_low']:+.1f} to {100 * line[f'{name}_high']:+.1f}",
            )
            for name in ("cost", "gap")
        ),
        Cell(f"{line['pairs']:.0f}", note=f"about {line['media']:.0f} images and videos"),
    ]
