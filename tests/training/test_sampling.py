"""The noise of each rollout."""

from __future__ import annotations

from sf.training.sampling import sampling_seeds


def test_seeds_differ_by_run_step_and_place() -> None:
    """The same noise at every step would sample the same answers to the same question."""
    calls = [(seed, step) for seed in (3, 4) for step in (0, 1, 2)]
    every = [value for call in calls for value in sampling_seeds(*call, range(8))]
    assert len(set(every)) == len(every) == 48
    assert sampling_seeds(3, 1, range(8)) == every[8:16]
    assert sampling_seeds(3, 1, [6, 2]) == [every[14], every[10]]  # wherever it is drawn
