"""The interface of a method: a frozen dataclass with one hyperparameter, applied as a context."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from sf.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from sf.attention import Trace

__all__ = ["Hyperparameter", "Method", "share_of"]


@dataclass(frozen=True)
class Hyperparameter:
    """The one number of a method that trades tokens for accuracy.

    Attributes:
        name: the field of the method that it sets.
        default: the paper's value, or one marked as ours in the method's text.
        low, high: range of the value; `high` belongs to it, `low` only with `low_allowed`.
        rises: whether a larger value keeps more tokens; False: fewer.
        dense: the value at which the method is exactly dense attention; None: there is none.
        whole: only whole numbers.
    """

    name: str
    default: float
    low: float = 0.0
    high: float = 1.0
    low_allowed: bool = False
    rises: bool = True
    dense: float | None = None
    whole: bool = False

    @property
    def range(self) -> str:
        """The range as text, "(0, 1]"."""
        return f"{'[' if self.low_allowed else '('}{self.low:g}, {self.high:g}]"

    def check(self, value: float) -> float:
        """`value` as a float.

        Raises:
            ConfigError: outside the range, or not a number.
        """
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        above = number >= self.low if self.low_allowed else number > self.low
        fits = above and number <= self.high and not (self.whole and number % 1)
        if not fits:
            rule = f"a {'whole ' if self.whole else ''}number in {self.range} is needed"
            raise ConfigError(self.name, value, rule, f"use {self.default:g}")
        return number


def share_of(count: int, share: float) -> int:
    """`share` of `count` tokens, rounded down.

    0.29 * 100 is a little below 29 in float64; that must not cost a token.
    """
    return math.floor(share * count + 1e-9)


@dataclass(frozen=True)
class Method(ABC):
    """A way to run a model's attention: a frozen dataclass that has the hyperparameter's field.

    Attributes:
        name: the key of `sf.baselines.METHODS`.
        text: what it does, one line.
        paper: arXiv id and where in it, or "ours".
        counts: what its token ratio counts, one line.
        hyperparameter: None for a method without one.
        decodes_densely: tokens after the prompt attend to the whole cache with the model's own
            attention.
    """

    decodes_densely: ClassVar[bool] = False
    name: ClassVar[str]
    text: ClassVar[str]
    paper: ClassVar[str]
    counts: ClassVar[str]
    hyperparameter: ClassVar[Hyperparameter | None]

    def __post_init__(self) -> None:
        if self.hyperparameter is not None:
            self.hyperparameter.check(getattr(self, self.hyperparameter.name))

    @classmethod
    def with_value(cls, value: float | None = None) -> Self:
        """The method at a value of its hyperparameter; None takes the default.

        Raises:
            ConfigError: the value is out of range, or there is no hyperparameter to set.
        """
        if value is None:
            return cls()
        if cls.hyperparameter is None:
            raise ConfigError(
                "value", value, f"{cls.__name__} has no hyperparameter", "leave it out"
            )
        return cls(**{cls.hyperparameter.name: cls.hyperparameter.check(value)})

    @property
    def value(self) -> float | None:
        """Of the hyperparameter; None for a method without one."""
        hyperparameter = self.hyperparameter
        return None if hyperparameter is None else float(getattr(self, hyperparameter.name))

    def at_point(self, retention_p: float) -> Self:
        """The method at one point of its curve from few tokens to all.

        Args:
            retention_p: in (0, 1], for the field of the same name; 1 keeps everything.

        Raises:
            ConfigError: the method has no curve.
        """
        if not hasattr(self, "retention_p"):
            rule = f"{type(self).__name__} has no threshold p to measure a curve over"
            raise ConfigError("method", type(self).__name__, rule)
        return type(self)(**{**vars(self), "retention_p": retention_p})

    @abstractmethod
    def apply(self, model: nn.Module) -> AbstractContextManager[Trace]:
        """A context in which `model` runs under this method; its trace records the kept tokens.

        The model is restored on exit, also after an exception.

        Raises:
            UnsupportedModelError: the method cannot run on this architecture.
        """
