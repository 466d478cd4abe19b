"""The reward r = correct + C * (1 - token_ratio)."""

from __future__ import annotations

import pytest
import torch

from sf.training.rewards import GroupReward

RIGHT, WRONG = "<answer>red</answer>", "<answer>blue</answer>"


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def columns(texts: list[str]) -> dict[str, list]:
    return {
        "completions": [reply(text) for text in texts],
        "problem_type": ["OCR"] * len(texts),
        "solution": [RIGHT] * len(texts),
    }


def test_accuracy_is_binary() -> None:
    reward = GroupReward(2, cutoff=0.99, gate=True)
    assert reward.accuracy(**columns([RIGHT, WRONG])) == [1.0, 0.0]


def test_cutoff_turns_fractions_into_right_or_wrong() -> None:
    half = columns(["<answer>red square</answer>"]) | {"problem_type": ["free-form"]}
    score = GroupReward(1, 0.01, gate=True).accuracy(**half)
    assert score == [1.0]
    assert GroupReward(1, 0.99, gate=True).accuracy(**half) == [0.0]


def test_efficiency_counts_in_groups_with_a_right_rollout() -> None:
    noted = {}
    reward = GroupReward(2, cutoff=0.99, gate=True)
    values = reward.efficiency(
        **columns([RIGHT, WRONG, WRONG, WRONG]),
        token_ratio=[0.25, 0.5, 0.25, 0.5],
        log_metric=noted.__setitem__,
    )
    assert values == [0.75, 0.5, 0.0, 0.0]
    assert noted == {"gate": 0.5}


def test_efficiency_without_the_gate_is_version_one() -> None:
    reward = GroupReward(2, cutoff=0.99, gate=False)
    values = reward.efficiency(
        **columns([WRONG, WRONG]), token_ratio=[0.25, 0.5], log_metric=lambda *_: None
    )
    assert values == [0.75, 0.5]


@pytest.mark.parametrize("rank", [0, 1])
def test_gate_of_a_group_on_two_ranks(rank: int) -> None:
    """Two groups of four on two ranks of four rollouts, the first group's right one on rank 0.

    With groups of eight, the one right rollout on rank 0 opens the gate on rank 1 too.
    """
    local = [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    every = torch.tensor(local).reshape(-1)
    for size, expected in ((4, [[1.0] * 4, [0.0] * 4]), (8, [[1.0] * 4, [1.0] * 4])):
        reward = GroupReward(size, 0.99, gate=True, gather=lambda _: every, rank=rank)
        assert reward.gates(local[rank]) == expected[rank]


def test_one_word_free_text_can_be_right() -> None:
    """ROUGE-2 of one word is 0: by the score alone such a question would never be right."""
    one = columns([RIGHT, WRONG]) | {"problem_type": ["free-form"] * 2}
    assert GroupReward(2, 0.99, gate=True).accuracy(**one) == [1.0, 0.0]
