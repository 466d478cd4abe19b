"""The data card's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from sf.data.manifest import DATA_TYPES, PROBLEM_TYPES, Row
from sf.escaping import markdown
from sf.plotting import figure, save

__all__ = ["counts_picture", "example_pictures", "length_picture", "source_picture"]

COLOURS = {"image": "#0072B2", "video": "#E69F00"}
_THUMBNAIL = 160  # pixels, longest side
_FRAMES_SHOWN = 4


def _stacked(panel: Any, names: Sequence[str], counts: Mapping[tuple[str, str], int]) -> None:
    """One bar of row counts per name, stacked by media type."""
    left = [0] * len(names)
    for kind in DATA_TYPES:
        widths = [counts.get((name, kind), 0) for name in names]
        panel.barh(names, widths, left=left, color=COLOURS[kind], label=kind)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    panel.invert_yaxis()
    panel.set_xlabel("rows")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def counts_picture(splits: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Rows by problem type and media, one panel per split: counts.png, counts.svg."""
    fig, axes = figure(3.4 * len(splits) + 1, 3.2, columns=len(splits))
    for panel, (split, rows) in zip(axes[0], splits.items(), strict=True):
        _stacked(panel, PROBLEM_TYPES, Counter((row.problem_type, row.data_type) for row in rows))
        panel.set_title(f"{split}: {len(rows):,} rows")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    save(fig, folder, "counts")


def source_picture(rows: Sequence[Row], folder: Path, most: int) -> None:
    """Rows of the largest sources: sources.png, sources.svg."""
    totals = Counter(row.data_source for row in rows).most_common(most)
    fig, axes = figure(8.0, 1.2 + 0.26 * max(len(totals), 1))
    panel = axes[0][0]
    names = [name for name, _ in totals]
    _stacked(panel, names, Counter((row.data_source, row.data_type) for row in rows))
    panel.set_title("Rows by source")
    fig.legend(*panel.get_legend_handles_labels(), loc="outside right upper")
    save(fig, folder, "sources")


def _histogram(panel: Any, rows: Sequence[Row], measure: str, kinds: Sequence[str]) -> None:
    """Row counts by a measure, with the same bins for all media types."""
    values = {kind: [getattr(r, measure) for r in rows if r.data_type == kind] for kind in kinds}
    together = [value for members in values.values() for value in members]
    if together:
        span = (min(together), max(together))
        for kind, members in values.items():
            panel.hist(members, bins=40, range=span, color=COLOURS[kind], alpha=0.75, label=kind)
    panel.set_ylabel("rows")
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def length_picture(rows: Sequence[Row], folder: Path) -> None:
    """Histograms of visual tokens and of video durations: lengths.png, lengths.svg."""
    fig, axes = figure(9.4, 3.2, columns=2)
    tokens, seconds = axes[0]
    _histogram(tokens, rows, "visual_tokens", DATA_TYPES)
    tokens.set_title("Visual tokens per row")
    tokens.set_xlabel("tokens")
    _histogram(seconds, rows, "duration_s", ["video"])
    seconds.set_title("Duration of videos")
    seconds.set_xlabel("seconds")
    fig.legend(*tokens.get_legend_handles_labels(), loc="outside right upper")
    save(fig, folder, "lengths")


def _strip(row: Row, root: Path, vision: Any) -> Any:
    """The media of a row as one thumbnail: the image, or some frames side by side."""
    import PIL.Image

    from sf.data.images import load_image, side_by_side
    from sf.data.video import load_video

    if row.data_type == "image":
        pictures = [load_image(root / row.media)]
    else:
        frames, _ = load_video(root / row.media, vision)
        step = max(1, len(frames) // _FRAMES_SHOWN)
        pictures = [PIL.Image.fromarray(frame) for frame in frames[::step][:_FRAMES_SHOWN]]
    for picture in pictures:
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return side_by_side(pictures, gap=4)


def example_pictures(
    rows: Sequence[Row], root: Path, folder: Path, vision: Any, seed: int
) -> list[str]:
    """One row of each problem and media type with its media, as Markdown lines.

    Args:
        rows: to choose from; the choice depends only on ids and seed.
        root: the data root.
        folder: figures folder; writes example_*.png.
        vision: bounds and frame rule.
        seed: for the choice.
    """
    from sf.data.split import unit_hash

    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for problem in PROBLEM_TYPES:
        for kind in DATA_TYPES:
            members = [r for r in rows if r.problem_type == problem and r.data_type == kind]
            if not members:
                continue
            row = min(members, key=lambda member: unit_hash("example", seed, member.id))
            name = f"example_{problem.replace(' ', '_').replace('-', '_').lower()}_{kind}.png"
            strip = _strip(row, root, vision)
            strip.save(folder / name)
            cost = f", {row.visual_tokens} visual tokens" if row.visual_tokens else ""
            lines += [f"### {problem}, {kind}", "", f"![{markdown(row.id)}](figures/{name})", ""]
            lines += [f"Row {markdown(row.id)} from {markdown(row.data_source)}{cost}.", ""]
            asked = (*row.problem.splitlines(), *row.options)
            lines += [f"> {markdown(line)}  " for line in asked]  # "  ": new line
            lines += ["", f"Answer: {markdown(row.answer)}", ""]
    return lines
