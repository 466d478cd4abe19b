"""How many visual tokens a share keeps."""

from __future__ import annotations

import torch

from sf.baselines.random_tokens import RandomTokens
from sf.baselines.visual import VisualColumns


def test_a_share_is_rounded_down_but_not_by_an_error_of_float64() -> None:
    policy = RandomTokens(0.29).policy(None, VisualColumns())
    visual = torch.arange(100) < torch.tensor([[100], [99], [0]])
    assert int(0.29 * 100) == 28
    assert policy.num_kept(visual).tolist() == [29, 28, 0]
