"""The table of objectives."""

from __future__ import annotations

from typing import get_args

import pytest
from tiny_world import parameters

from sf.config import Objective
from sf.training.objectives import RECIPES, settled
from sf.training.parameters import RunParameters


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
