"""The table of objectives."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from tiny_world import parameters

from sf.config import Objective
from sf.selection import TopP
from sf.training.answers import Answers
from sf.training.objectives import RECIPES, settled
from sf.training.parameters import RunParameters
from sf.training.retention_schedule import RetentionSchedule


def test_every_objective_has_a_recipe() -> None:
    assert set(RECIPES) == set(get_args(Objective))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_an_objective_changes_its_own_parameters_and_no_others(name: str) -> None:
    given = parameters(objective=name)
    used = settled(given)
    assert set(RECIPES[name].changes) <= set(RunParameters.model_fields)
    for field in RunParameters.model_fields:
        expected = RECIPES[name].changes.get(field, getattr(given, field))
        assert getattr(used, field) == expected


def test_answers_take_their_own_thresholds_into_a_bucket() -> None:
    nothing: Any = None
    schedule = RetentionSchedule.of(parameters())
    answers = Answers(nothing, nothing, [0.5, 0.7, 0.9], schedule, nothing, nothing, width=1)
    policy = answers.policy(torch.tensor([2, 0]), start=0)
    assert isinstance(policy, TopP)
    assert policy.p == [0.9, 0.5]
