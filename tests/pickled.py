"""A pickle that leaves a mark when something loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Payload:
    """Creates a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)
