"""Medians, intervals and verdicts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sf.profiling.summary import break_even, median, speedups, tidy
from sf.profiling.timing import Run


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    [
        (2, 1, 2, 0.5),
        (3, 1, 3, 0.75),
        (6, 1, 6, 0.96875),
        (9, 2, 8, 0.9609375),
        (20, 6, 15, 0.9586),
    ],
)
def test_the_interval_is_made_of_order_statistics(
    count: int, low: float, high: float, coverage: float
) -> None:
    middle = median(list(range(count, 0, -1)))
    assert (middle.low, middle.high) == (low, high)
    assert middle.coverage == pytest.approx(coverage, abs=1e-4)
    assert middle.value == (count + 1) / 2


def test_one_repeat_has_no_interval() -> None:
    middle = median([3.0])
    assert middle.value == 3.0
    assert math.isnan(middle.low)
    assert middle.coverage == 0.0


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = [median(list(rng.lognormal(size=6))) for _ in range(1000)]
    hits = sum(draw.low <= 1.0 <= draw.high for draw in draws)  # the median is exp(0)
    assert hits / 1000 == pytest.approx(draws[0].coverage, abs=0.02)


def runs(full: list[float], sparse: list[float]) -> dict[str, Run]:
    return {
        "full": Run(full, [2.0] * 6, {"mlp": full}, 400, 900, 500, 1.0),
        "sparse": Run(sparse, [4.0] * 6, {"mlp": sparse}, 100, 900, 600, 0.25),
    }


@pytest.mark.parametrize(
    ("sparse", "verdict"),
    [
        ([5.0] * 6, "faster"),
        ([20.0] * 6, "slower"),
        ([5.0] * 5 + [11.0], "no difference"),
        ([10.0] * 6, "no difference"),
    ],
)
def test_a_ratio_whose_interval_contains_one_is_no_difference(
    sparse: list[float], verdict: str
) -> None:
    lines = {line["metric"]: line for line in speedups("s", 64, 1, runs([10.0] * 6, sparse))}
    assert lines["prefill_ms"]["verdict"] == verdict
    assert lines["decode_ms"]["ratio"] == 0.5
    assert lines["decode_ms"]["verdict"] == "slower"
    assert lines["kv_bytes"]["ratio"] == 4.0
    assert lines["kv_bytes"]["verdict"] == "smaller"
    assert lines["peak_prefill_bytes"]["verdict"] == "no difference"
    assert lines["peak_decode_bytes"]["verdict"] == "larger"


def test_times_are_divided_repeat_by_repeat() -> None:
    drifting = runs([10.0, 20.0, 30.0, 40.0, 50.0, 60.0], [5.0, 10.0, 15.0, 20.0, 25.0, 30.0])
    line = speedups("s", 64, 1, drifting)[0]
    assert (line["ratio"], line["low"], line["high"]) == (2.0, 2.0, 2.0)


def test_a_tidy_table_has_a_line_per_side_and_metric() -> None:
    table = pd.DataFrame(tidy("s", 64, 1, runs([10.0] * 6, [5.0] * 6)))
    assert len(table) == 2 * (2 + 1 + 3)
    line = table[(table["side"] == "sparse") & (table["metric"] == "prefill_mlp_ms")].iloc[0]
    assert line["value"] == 5.0
    assert line["repeats"] == 6
    assert line["unit"] == "ms"


def test_tokens_per_second_count_every_row_of_the_batch() -> None:
    """Four rows, one token each in 8 ms: 500 tokens per second."""
    both_runs = runs([10.0] * 6, [5.0] * 6)
    both_runs["full"].step_ms = [8.0, 8.0, 4.0]
    lines = {line["metric"]: line for line in tidy("s", 64, 4, both_runs) if line["side"] == "full"}
    assert lines["tokens_per_s"]["value"] == 500
    assert (lines["tokens_per_s"]["low"], lines["tokens_per_s"]["high"]) == (500, 1000)
    assert lines["tokens_per_s"]["unit"] == "tokens/s"
    assert lines["step_ms"]["value"] == 8


def test_a_size_of_nothing_is_a_figure_and_one_that_is_not_counted_has_no_line() -> None:
    both_runs = runs([10.0] * 6, [5.0] * 6)
    both_runs["full"].peak_decode_bytes = 0
    lines = {line["metric"]: line for line in tidy("s", 64, 1, both_runs) if line["side"] == "full"}
    assert lines["peak_decode_bytes"]["value"] == 0
    assert not {"held_decode_bytes", "reserved_bytes"} & lines.keys()


@pytest.mark.parametrize(
    ("verdicts", "length"),
    [
        (["slower", "faster", "faster"], 128),
        (["faster", "no difference", "faster"], 256),
        (["faster", "faster", "no difference"], None),
        (["faster", "faster", "faster"], 64),
    ],
)
def test_break_even_is_where_it_stays_faster(verdicts: list[str], length: int | None) -> None:
    table = pd.DataFrame({"metric": "prefill_ms", "length": [64, 128, 256], "verdict": verdicts})
    assert break_even(table, "prefill_ms") == length
