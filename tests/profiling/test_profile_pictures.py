"""Pictures of a profile are understandable by themselves."""

from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.figure import Figure

from sf.profiling.pictures import _length, latency_picture, memory_picture, parts_picture
from sf.profiling.summary import not_fitting, speedups, tidy
from sf.profiling.timing import Run

NOTES = {"weights": "random", "ratio_set_by": "top-k 0.25", "note": "made", "dense": "flash-attn 2"}


@pytest.fixture
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two lengths, of which the longer does not fit the full side."""
    runs = {}
    for side, times, ratio in (("full", [10.0] * 6, 1.0), ("sparse", [5.0] * 6, 0.25)):
        parts = {"mlp": [t - 1 for t in times], "attention": [1.0] * 6, "vision": [0.0] * 6}
        runs[side] = Run(times, [2.0] * 6, parts, 4096, 9000, 900, ratio, times, 900)
        runs[side].processor_ms = [3.0] * 6
    lines = tidy("shape", 2004, 1, runs) + tidy("shape", 8192, 1, {"sparse": runs["sparse"]})
    lines += not_fitting("shape", 8192, 1, "full")
    ratios = speedups("shape", 2004, 1, runs)
    return tuple(pd.DataFrame([{**line, **NOTES} for line in part]) for part in (lines, ratios))


def words(fig: Figure) -> str:
    """All text in a picture."""
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in fig.findobj(Text) if text.get_text())


def test_lengths_are_read_as_they_are() -> None:
    assert [_length(value) for value in (512, 2004, 2048, 131072, 200_000)] == [
        *("512", "2,004", "2k", "128k", "200k"),
    ]


def test_latency_and_memory_name_side_unit_and_gap(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    table, ratios = tables
    text_of_picture = words(latency_picture(table, ratios, "a device"))
    for text in (
        *("shape (random weights, sparse keeps 25 % of the tokens)", "(flash-attn 2)"),
        *("prefill (ms)", "prompt length (tokens)", "full attention: does not fit", "a device"),
        *("prefill: faster from 2,004", "sparse is slower", "full / sparse (times)"),
    ):
        assert text in text_of_picture, text
    text_of_picture = words(memory_picture(table, "a device"))
    for text in ("keys and values (MiB)", "above the weights (MiB)", "does not fit"):
        assert text in text_of_picture, text


def test_parts_stand_in_order_with_their_time(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    fig = parts_picture(tables[0], "a device")
    assert fig is not None
    text_of_picture = words(fig)
    for text in ("processor", "attention", "mlp", "left: full", "right: sparse", "2,004"):
        assert text in text_of_picture, text
    assert "13 ms" in text_of_picture  # full: processor and prefill
    assert "8 ms" in text_of_picture
    assert "vision" not in text_of_picture  # it took no time
    assert "full: does not fit" in text_of_picture
    (axes,) = fig.axes
    assert axes.get_ylim()[1] >= 100
