"""The reward r = correct + C * (1 - token_ratio)."""

from __future__ import annotations

import pytest
import torch

from sf.training.rewards import GroupReward, ScoredRollouts

RIGHT, WRONG = "<answer>red</answer>", "<answer>blue</answer>"


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def columns(texts: list[str]) -> dict[str, list]:
    return {
        "completions": [reply(text) for text in texts],
        "problem_type": ["OCR"] * len(texts),
        "solution": [RIGHT] * len(texts),
        "template": ["answer"] * len(texts),
    }


def test_accuracy_is_binary() -> None:
    reward = GroupReward(2, cutoff=0.99, gate=True)
    assert reward.accuracy(**columns([RIGHT, WRONG])) == [1.0, 0.0]


def test_cutoff_turns_fractions_into_right_or_wrong() -> None:
    half = columns(["<answer>red square</answer>"]) | {"problem_type": ["free-form"]}
    score = GroupReward(1, 0.01, gate=True).accuracy(**half)
    assert score == [1.0]
    assert GroupReward(1, 0.99, gate=True).accuracy(**half) == [0.0]


def test_a_bare_answer_is_right_where_one_was_asked_for() -> None:
    """And nowhere else; a piece of a tag makes it wrong, which the reward is meant to unlearn."""
    replies = ["red", "blue", "red</answer>", RIGHT]
    short = columns(replies) | {"template": ["short"] * 4}
    reward = GroupReward(4, cutoff=0.99, gate=True)
    assert reward.accuracy(**short) == [1.0, 0.0, 0.0, 0.0]
    assert reward.accuracy(**columns(replies)) == [0.0, 0.0, 0.0, 1.0]
    parts = GroupReward(4, 0.99, gate=True, fractional=True)
    assert parts.correctness(**short, correct=[0.0] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_an_evaluation_may_have_groups_of_another_size() -> None:
    reward = GroupReward(4, 0.99, gate=True)
    assert reward.gates([1.0, 0.0, 0.0, 0.0]) == [1.0] * 4
    assert reward.gates([1.0, 0.0, 0.0, 0.0], group_size=2) == [1.0, 1.0, 0.0, 0.0]
    scored = ScoredRollouts(reward)
    scored.group_size = 2
    scored.correct = [0.0, 1.0, 0.0, 0.0]
    ratios = {"token_ratio": [0.5] * 4, "latency_ratio": [1.0] * 4}
    assert scored.efficiency(**ratios, log_metric=lambda *_: None) == [0.5, 0.5, 0.0, 0.0]


def efficiency(reward: GroupReward, texts: list[str], **ratios: list[float]) -> list[float]:
    noted: dict[str, float] = {}
    scored = ScoredRollouts(reward)
    given = columns(texts) | {"log_metric": noted.__setitem__}
    scored.correctness(**given)
    values = scored.efficiency(**given, **({"latency_ratio": [1.0] * len(texts)} | ratios))
    assert noted["accuracy"] == sum(text == RIGHT for text in texts) / len(texts)
    return [*values, noted["gate"]]


def test_efficiency_counts_in_groups_with_a_right_rollout() -> None:
    ratio = [0.25, 0.5, 0.25, 0.5]
    texts = [RIGHT, WRONG, WRONG, WRONG]
    gated = efficiency(GroupReward(2, cutoff=0.99, gate=True), texts, token_ratio=ratio)
    assert gated == [0.75, 0.5, 0.0, 0.0, 0.5]


def test_efficiency_without_the_gate_is_version_one() -> None:
    reward = GroupReward(2, cutoff=0.99, gate=False)
    assert efficiency(reward, [WRONG] * 2, token_ratio=[0.25, 0.5]) == [0.75, 0.5, 1.0]


def test_latency_counts_beside_the_tokens() -> None:
    """r = correct + C (1 - tau + w (1 - lambda)), w = 0.5."""
    reward = GroupReward(2, cutoff=0.99, gate=True, latency_weight=0.5)
    ratios = {"token_ratio": [0.25, 0.5], "latency_ratio": [0.5, 1.25]}
    assert efficiency(reward, [RIGHT, WRONG], **ratios) == [1.0, 0.375, 1.0]
    assert efficiency(reward, [WRONG] * 2, **ratios) == [0.0, 0.0, 0.0]


def test_fractional_correctness_rewards_the_score_itself() -> None:
    """OCR: one of two words right is 1/2; C and accuracy still go by the cut-off."""
    half = "<answer>red blue</answer>"
    given = columns([half, RIGHT, WRONG]) | {"solution": ["<answer>red cube</answer>"] * 3}
    binary, parts = GroupReward(3, 0.6, gate=True), GroupReward(3, 0.6, gate=True, fractional=True)
    assert binary.accuracy(**given) == parts.accuracy(**given) == [0.0, 0.0, 0.0]
    assert binary.correctness(**given, correct=[0.0] * 3) == [0.0] * 3
    assert parts.correctness(**given, correct=[0.0] * 3) == [0.5, 0.5, 0.0]
    one_word = columns([RIGHT]) | {"problem_type": ["free-form"]}
    assert parts.correctness(**one_word, correct=[1.0]) == [1.0]


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
    """ROUGE-2 of one word is 0: by the score alone such a question could never be right."""
    one = columns([RIGHT, WRONG]) | {"problem_type": ["free-form"] * 2}
    assert GroupReward(2, 0.99, gate=True).accuracy(**one) == [1.0, 0.0]
