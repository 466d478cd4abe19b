"""Bootstrap intervals against a slow oracle, and their invariances."""

from __future__ import annotations

import numpy as np
import pytest

from sf.evaluation.aggregate import benchmark_draws, benchmark_score
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.intervals import interval
from sf.evaluation.scoring import SampleScore


def _scores(values: list[float], units: list[str] | None = None) -> list[SampleScore]:
    names = units or [""] * len(values)
    return [SampleScore(value, unit=unit) for value, unit in zip(values, names, strict=True)]


def test_mean_over_samples_matches_the_binomial_interval() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.7).astype(float).tolist()
    scores = {"chartqa": _scores(values)}
    low, high = interval(benchmark_draws(benchmark_named("chartqa"), scores, seed=1))
    share = float(np.mean(values))
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert (low, high) == pytest.approx((100 * (share - half), 100 * (share + half)), abs=0.7)


def test_videos_are_drawn_as_a_whole() -> None:
    """Ten videos of twenty equal answers are as uncertain as ten samples, not as two hundred."""
    values = [float(video % 2) for video in range(10) for _ in range(20)]
    units = [f"v{video}" for video in range(10) for _ in range(20)]
    alike = {"videomme": _scores(values, units)}
    single = {"videomme": _scores([float(video % 2) for video in range(10)])}
    spread = [
        np.std(benchmark_draws(benchmark_named("videomme"), s, seed=2)) for s in (alike, single)
    ]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_categories_are_drawn_each_for_itself() -> None:
    """One category all right and one all wrong: the macro mean is certain."""
    scores = {
        "mlvu_dev": [
            SampleScore(float(group == "ego"), group=group)
            for group in ("ego", "count")
            for _ in range(10)
        ]
    }
    draws = benchmark_draws(benchmark_named("mlvu_dev"), scores, seed=0)
    assert benchmark_score(benchmark_named("mlvu_dev"), scores) == pytest.approx(100 / 7)
    assert draws == pytest.approx(np.full(draws.shape, 100 / 7))


def test_a_category_of_one_unit_gives_no_interval() -> None:
    """A width of zero would claim that the score is certain."""
    pair = [SampleScore(value, group="color", unit="p0") for value in (1.0, 0.0)]
    more = [SampleScore(1.0, group="count", unit=unit) for unit in ("p1", "p2")]
    low, high = interval(benchmark_draws(benchmark_named("mme"), {"mme": pair + more}, seed=0))
    assert np.isnan(low)
    assert np.isnan(high)


def test_mme_counts_pairs() -> None:
    pairs = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)]
    scores = {
        "mme": [
            SampleScore(value, group="color", unit=f"p{number}")
            for number, pair in enumerate(pairs)
            for value in pair
        ]
    }
    assert benchmark_score(benchmark_named("mme"), scores) == pytest.approx(
        (200 + 50 + 0 + 200) / 4
    )


def test_ocrbench_is_out_of_a_thousand_whatever_was_asked() -> None:
    assert benchmark_score(benchmark_named("ocrbench"), {"ocrbench": _scores([1.0, 0.0])}) == 500


def test_parts_count_alike_whatever_their_size() -> None:
    scores = {"mmmu_pro_standard": _scores([1.0] * 9), "mmmu_pro_vision": _scores([0.0])}
    assert benchmark_score(benchmark_named("mmmu_pro"), scores) == 50


def test_draws_depend_on_seed_and_task_alone() -> None:
    values = _scores([0.0, 1.0, 1.0, 0.0, 1.0])
    first = benchmark_draws(benchmark_named("chartqa"), {"chartqa": values}, seed=5)
    again = benchmark_draws(benchmark_named("chartqa"), {"chartqa": values}, seed=5)
    other = benchmark_draws(benchmark_named("chartqa"), {"chartqa": values}, seed=6)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_tasks_are_drawn_each_for_itself() -> None:
    """The mean of two similar tasks is more certain than one: each draws its own questions."""
    values = _scores([0.0, 1.0] * 50)
    both = {"mmmu_pro_standard": values, "mmmu_pro_vision": values}
    spread = np.std(benchmark_draws(benchmark_named("mmmu_pro"), both, seed=0))
    alone = np.std(benchmark_draws(benchmark_named("chartqa"), {"chartqa": values}, seed=0))
    assert spread == pytest.approx(alone / np.sqrt(2), rel=0.1)


def test_large_benchmarks_are_drawn_in_pieces_alike() -> None:
    """Pieces bound the memory; every replicate must still be filled."""
    values = _scores([0.0, 1.0] * 3000)
    draws = benchmark_draws(benchmark_named("chartqa"), {"chartqa": values}, seed=0, draws=500)
    assert draws.shape == (500,)
    assert draws.mean() == pytest.approx(50, abs=0.3)
    assert draws.std() == pytest.approx(100 * 0.5 / np.sqrt(6000), rel=0.15)
