"""The data card: the prepared data as Markdown with figures, and the tables behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sf.data.manifest import DATA_TYPES, PROBLEM_TYPES, Row
from sf.escaping import markdown

if TYPE_CHECKING:
    import pandas as pd

    from sf.data.preparation import Prepared
    from sf.sections import Vision

__all__ = ["count_table", "length_table", "summary", "write_card"]

LARGEST_SOURCES = 20
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def count_table(splits: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
    """Rows by split, media type, problem type and source."""
    import pandas as pd

    counts: Counter[tuple[str, str, str, str]] = Counter(
        (split, row.data_type, row.problem_type, row.data_source)
        for split, rows in splits.items()
        for row in rows
    )
    records = [(*key, count) for key, count in sorted(counts.items())]
    return pd.DataFrame(
        records, columns=["split", "data_type", "problem_type", "data_source", "rows"]
    )


def length_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Quantiles of sizes and costs by media type; media facts only if media were opened."""
    import numpy as np
    import pandas as pd

    measures = ("visual_tokens", "width", "height", "num_frames", "duration_s", "fps")
    records = []
    for kind in DATA_TYPES:
        members = [row for row in rows if row.data_type == kind]
        values = {name: np.array([getattr(row, name) for row in members]) for name in measures}
        values["question_characters"] = np.array([len(row.problem) for row in members])
        values["answer_characters"] = np.array([len(row.answer) for row in members])
        for name, column in values.items():
            if column.size and column.any():
                quantiles = np.quantile(column, QUANTILES)
                records.append((kind, name, column.mean(), *quantiles))
    columns = ["data_type", "measure", "mean", *(f"q{quantile:g}" for quantile in QUANTILES)]
    return pd.DataFrame(records, columns=columns)


def summary(done: Prepared) -> dict[str, float]:
    """The stage's metrics: rows by split, rejects by kind, media and tokens."""
    collected = done.source.collected
    used = [row for rows in done.splits.values() for row in rows]
    return {
        "rows_read": collected.num_read,
        "rows_unselected": collected.num_unselected,
        **{f"rows_{split}": len(rows) for split, rows in done.splits.items()},
        "rows_reserve": len(done.reserve),
        "rows_rejected": len(collected.rejects),
        "reject_share": len(collected.rejects) / collected.num_read,
        **{
            f"rejected_{kind.lower().replace(' ', '_').replace('-', '')}": count
            for kind, count in sorted(collected.kinds().items())
        },
        "media": len({row.media for row in used}),
        "media_copies": collected.num_copies,
        "benchmark_name_matches": len(done.leaks),
        "visual_tokens_mean": sum(row.visual_tokens for row in used) / max(len(used), 1),
    }


def write_card(folder: Path, done: Prepared, vision: Vision, seed: int) -> None:
    """Write `data_card.md` with its tables and `figures/`.

    Args:
        folder: results folder; tables/ and figures/ lie below it.
        done: the prepared data.
        vision: the bounds for counting visual tokens.
        seed: for choosing the example rows.
    """
    from sf.atomic_files import write_text
    from sf.data import card_figures
    from sf.tables import write_csv

    rows = [row for members in done.splits.values() for row in members]
    counts, lengths = count_table(done.splits), length_table(rows)
    write_csv(counts, folder / "tables" / "counts.csv")
    write_csv(lengths, folder / "tables" / "lengths.csv")
    figures = folder / "figures"
    card_figures.counts_picture(done.splits, figures)
    card_figures.source_picture(rows, figures, LARGEST_SOURCES)
    card_figures.length_picture(rows, figures)
    shown, root = done.splits["train"], done.source.root
    examples = card_figures.example_pictures(shown, root, figures, vision, seed)
    lines = [
        *_overview(done, rows, counts),
        *_sources(rows),
        *_lengths(done, lengths, vision),
        *_rejects(done),
        *(["## Examples", "", *examples] if examples else []),
    ]
    write_text(folder / "data_card.md", "\n".join(lines))


def _overview(done: Prepared, rows: Sequence[Row], counts: pd.DataFrame) -> list[str]:
    collected = done.source.collected
    by_split = counts.pivot_table(
        index=["data_type", "problem_type"], columns="split", values="rows", aggfunc="sum"
    )
    by_split = by_split.reindex(columns=list(done.splits)).fillna(0).astype(int).reset_index()
    order = {name: place for place, name in enumerate((*DATA_TYPES, *PROBLEM_TYPES))}
    by_split = by_split.sort_values(
        ["data_type", "problem_type"], key=lambda column: column.map(order)
    )
    return [
        f"# Data card: {markdown(done.source.origin)}",
        "",
        *_revision(done),
        f"{collected.num_read:,} rows read, {len(collected.rejects):,} rejected, "
        f"{collected.num_unselected:,} not selected, {len(done.reserve):,} in reserve; "
        f"{len(rows):,} rows about {len({row.media for row in rows}):,} media in use.",
        "",
        "Rows about the same media are on the same side of the split. A hash decides the side, so "
        "adding rows never moves another row. Rows in reserve are on a held-out side but in no "
        f"manifest. {_copies(done)}",
        "",
        done.leakage,
        "",
        "## Rows by media, problem type and split",
        "",
        by_split.to_markdown(index=False, intfmt=","),
        "",
        "![Rows by problem type](figures/counts.png)",
        "",
    ]


def _revision(done: Prepared) -> list[str]:
    if not done.source.unpinned:
        return []
    return [
        f"**Not pinned**: configured as {markdown(done.source.unpinned)}, a branch or tag that can "
        "move. It pointed to the commit above when it was first used here; `origin.json` records "
        "that commit, and later runs of this study use it.",
        "",
    ]


def _copies(done: Prepared) -> str:
    return (
        f"Media are identified by their bytes: {done.source.collected.num_copies:,} files are "
        "copies of another file and on the same side."
    )


def _sources(rows: Sequence[Row]) -> list[str]:
    sources = Counter(row.data_source for row in rows).most_common(LARGEST_SOURCES)
    lines = ["## Sources", "", "| data source | rows |", "|:--|--:|"]
    lines += [f"| {markdown(name)} | {count:,} |" for name, count in sources]
    return [*lines, "", "![Rows by source](figures/sources.png)", ""]


def _lengths(done: Prepared, lengths: pd.DataFrame, vision: Vision) -> list[str]:
    lines = [
        "## Lengths and sizes",
        "",
        f"Visual tokens are counted for images of {vision.image_min_pixels:,} to "
        f"{vision.image_max_pixels:,} pixels, videos of at most {vision.video_max_frames} frames "
        f"at {vision.video_fps:g} per second, each of {vision.video_min_pixels:,} to "
        f"{vision.video_max_pixels:,} pixels.",
        "",
        lengths.to_markdown(index=False, floatfmt=",.4g"),
        "",
    ]
    return [*lines, "![Visual tokens and durations](figures/lengths.png)", ""]


def _rejects(done: Prepared) -> list[str]:
    kinds = done.source.collected.kinds()
    if not kinds:
        return ["## Rejected rows", "", "None.", ""]
    lines = ["## Rejected rows", "", "| reason | rows |", "|:--|--:|"]
    lines += [f"| {markdown(kind)} | {count:,} |" for kind, count in sorted(kinds.items())]
    end = "`rejects.parquet` and `tables/rejects.csv` list each row with its reason."
    return [*lines, "", end, ""]
