"""The warnings and figures of a run in progress."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_world import Log

from sf.progress import Progress
from sf.training.monitor import Monitor

HEALTHY = {
    "loss": 0.1,
    "accuracy": 0.8,
    "frac_reward_zero_std": 0.1,
    "token_ratio": 0.4,
    "completions/clipped_ratio": 0.0,
    "logp_gap": 1e-3,
}


def watch(monitor: Monitor, steps: int, **changes: float) -> list[str]:
    """Log the same figures at each step; returns the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            state: Any = SimpleNamespace(
                global_step=step, is_world_process_zero=True, num_input_tokens_seen=100.0 * step
            )
            monitor.on_log(None, state, None, {**HEALTHY, **changes})
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"accuracy": 0.0}, "no answer was right"),
        ({"frac_reward_zero_std": 1.0}, "all rewards of each group are equal"),
        ({"token_ratio": 0.01}, "almost no prompt tokens are kept"),
        ({"completions/clipped_ratio": 0.95}, "raise max_completion_tokens"),
        ({"logp_gap": 0.6}, "log-probabilities of rollout and training differ"),
    ],
)
def test_trouble_that_lasts_is_named(changes: dict[str, float], cause: str) -> None:
    """Patience 4: a warning at step 5 and again four steps later, not before."""
    counter = Progress("t", 9)
    assert watch(Monitor(Log(), counter, patience=4), 4, **changes) == []
    warned = watch(Monitor(Log(), counter, patience=4), 9, **changes)
    assert len(warned) == 2
    assert all(cause in line and "for 4 steps" in line for line in warned)


def test_a_healthy_run_is_quiet_and_logged_under_plain_names() -> None:
    log = Log()
    assert watch(Monitor(log, Progress("t", 9), patience=2), 9) == []
    last = log.history[-1][1]
    assert last["zero_advantage_share"] == 0.1
    assert last["truncated_share"] == 0.0
    assert last["tokens_per_s"] > 0


def test_tokens_per_second_are_those_since_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens per step of 4 s; the tokens of an earlier call do not count."""
    log, times = Log(), iter([10.0, 14.0, 18.0])
    monkeypatch.setattr("sf.training.monitor.time.monotonic", lambda: next(times))
    watch(Monitor(log, Progress("t", 9)), 3)
    assert [values.get("tokens_per_s") for _, values in log.history] == [None, 25.0, 25.0]


def test_figures_have_this_projects_names() -> None:
    logs = {
        "loss": 1, "rewards/correctness/mean": 2, "rewards/efficiency/mean": 3,
        "frac_reward_zero_std": 4, "clip_ratio/region_mean": 5, "completions/mean_length": 6,
        "completions/clipped_ratio": 7, "step_time": 8, "token_ratio_layer/3": 9, "epoch": 10,
        "kl": None,
    }  # fmt: skip
    assert Monitor.figures(logs) == {
        "loss": 1.0, "correctness": 2.0, "efficiency": 3.0, "zero_advantage_share": 4.0,
        "clipped_share": 5.0, "completion_tokens": 6.0, "truncated_share": 7.0, "step_s": 8.0,
        "token_ratio_layer/3": 9.0,
    }  # fmt: skip


def test_only_the_first_rank_logs() -> None:
    log = Log()
    state: Any = SimpleNamespace(
        global_step=1, is_world_process_zero=False, num_input_tokens_seen=1.0
    )
    Monitor(log, Progress("t", 9)).on_log(None, state, None, dict(HEALTHY))
    assert log.history == []


def test_trouble_that_passes_is_forgotten() -> None:
    monitor = Monitor(Log(), Progress("t", 9), patience=4)
    for changes in ({"accuracy": 0.0}, {}, {"accuracy": 0.0}):
        assert watch(monitor, 3, **changes) == []
