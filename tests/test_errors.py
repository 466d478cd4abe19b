"""Errors keep their content when they cross processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from sf import errors

KINDS = [
    getattr(errors, name)
    for name in errors.__all__
    if name not in ("EvaluationFailed", "SparsityForcingError")
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[errors.SparsityForcingError]) -> None:
    error = kind("beta", -1, "must not be negative", "set it to 0.04")
    error.add_note("in row 3")
    for restored in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(restored) is kind
        assert str(restored) == str(error)
        assert vars(restored) == vars(error)


def test_failed_benchmarks_survive_pickling() -> None:
    causes = [errors.DataError("rows", 0, "none is left"), ValueError("no image")]
    error = errors.EvaluationFailed(causes, 3, "see the log")
    restored = pickle.loads(pickle.dumps(error))
    assert str(restored) == str(error)
    assert [str(cause) for cause in restored.exceptions] == [str(cause) for cause in causes]
