"""The objectives: a tagged union."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_world import SETTINGS, parameters

from sf.selection import TopP
from sf.training.answers import AnswerBatch
from sf.training.objectives import OBJECTIVES
from sf.training.retention_schedule import RetentionSchedule


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_takes_its_own_settings_and_no_others(name: str) -> None:
    own = parameters(name).objective
    assert own.objective == name
    assert type(own) is OBJECTIVES[name]
    for other in sorted(OBJECTIVES):
        foreign = set(SETTINGS[other]) - set(type(own).model_fields)
        for field in foreign:
            with pytest.raises(ValidationError, match=rf"{name}\.{field}\n.*not permitted"):
                parameters(name, **{field: SETTINGS[other][field]})


@pytest.mark.parametrize("name", ["sharpness", "moba", "nsa", "videonsa"])
def test_dense_objectives_see_every_question_once_and_whole(name: str) -> None:
    schedule = RetentionSchedule.of(parameters(name))
    assert (schedule.group_size, schedule(0, range(4))) == (1, [1.0] * 4)
    assert schedule.policy([1.0]).dense


def test_answers_take_their_own_thresholds_into_a_bucket() -> None:
    nothing: Any = None
    schedule = RetentionSchedule.of(parameters())
    answers = AnswerBatch(nothing, nothing, [0.5, 0.7, 0.9], schedule, nothing, nothing, width=1)
    policy = answers.policy(torch.tensor([2, 0]), start=0)
    assert isinstance(policy, TopP)
    assert policy.p == [0.9, 0.5]
