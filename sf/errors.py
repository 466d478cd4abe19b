"""The error tree: an error that a user can cause is a `SparsityForcingError` and a stdlib error.

A message states the field, the value, the rule and the remedy, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "ConfigError",
    "DataError",
    "EnvironmentFault",
    "EvaluationFailed",
    "MissingExtra",
    "OutputConflictError",
    "SparsityForcingError",
    "TrainingCollapse",
    "UnsupportedModelError",
]


class SparsityForcingError(Exception):
    """Base of all errors that a user of this package can cause or must resolve."""

    def __init__(self, field: str, value: object = None, rule: str = "", remedy: str = "") -> None:
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy
        shown = f"{field} = {value!r}" if value is not None else field
        parts = [shown, rule, remedy]
        ended = (part.rstrip(".") for part in parts if part)
        super().__init__(" ".join(part if part[-1:] == "?" else f"{part}." for part in ended))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Errors cross processes, and Exception.__reduce__ would pass the message as the field.
        return _restored, (type(self), self.args, dict(vars(self)))


def _restored(
    kind: type[SparsityForcingError], arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> SparsityForcingError:
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(attributes)
    return error


class ConfigError(SparsityForcingError, ValueError):
    """A parameter is unknown, out of range or inconsistent with another one."""


class DataError(SparsityForcingError, ValueError):
    """Input rows or media are unusable, or too many of them were rejected."""


class UnsupportedModelError(SparsityForcingError, TypeError):
    """A model cannot be run with sparse attention."""


class OutputConflictError(SparsityForcingError, FileExistsError):
    """An output folder contains files that this stage did not write."""


class EnvironmentFault(SparsityForcingError, RuntimeError):
    """The machine lacks something: a device, disk space, a package, a server."""


class MissingExtra(EnvironmentFault, ModuleNotFoundError):
    """A package of an optional extra is not installed (`sf.extras`)."""


class EvaluationFailed(SparsityForcingError, RuntimeError):
    """Some benchmarks could not be evaluated; all were tried, and their replies are saved.

    Attributes:
        exceptions: the errors, one per benchmark.
    """

    def __init__(self, exceptions: Sequence[Exception], tried: int, remedy: str) -> None:
        self.exceptions = tuple(exceptions)
        lines = [f"{len(exceptions)} of {tried} benchmarks failed:"]
        for error in exceptions:
            known = isinstance(error, SparsityForcingError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            lines.append(": ".join(["", *getattr(error, "__notes__", ()), text]).lstrip(": "))
        super().__init__("\n  ".join(lines), None, "", f"\n{remedy}")


class TrainingCollapse(SparsityForcingError, RuntimeError):
    """Training was stopped because its metrics left their meaningful range."""
