"""What a run says while it goes on."""

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
    """Log the same figures at each step; what was warned of."""
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
        ({"frac_reward_zero_std": 1.0}, "every group has equal rewards"),
        ({"token_ratio": 0.01}, "almost no prompt tokens are kept"),
        ({"completions/clipped_ratio": 0.95}, "raise max_completion_tokens"),
        ({"logp_gap": 0.6}, "log-probabilities of rollout and training differ"),
    ],
)
def test_trouble_that_lasts_is_named(changes: dict[str, float], cause: str) -> None:
    """Patience 4: said at step 5 and again four steps later, not before."""
    counter = Progress("t", 9)
    assert watch(Monitor(Log(), counter, patience=4), 4, **changes) == []
    said = watch(Monitor(Log(), counter, patience=4), 9, **changes)
    assert len(said) == 2
    assert all(cause in line and "for 4 steps" in line for line in said)


def test_a_healthy_run_is_quiet_and_logged_under_plain_names() -> None:
    log = Log()
    assert watch(Monitor(log, Progress("t", 9), patience=2), 9) == []
    last = log.history[-1][1]
    assert last["zero_advantage_share"] == 0.1
    assert last["truncated_share"] == 0.0
    assert last["tokens_per_s"] > 0


def test_trouble_that_passes_is_forgotten() -> None:
    monitor = Monitor(Log(), Progress("t", 9), patience=4)
    for changes in ({"accuracy": 0.0}, {}, {"accuracy": 0.0}):
        assert watch(monitor, 3, **changes) == []
