"""Tables as files: written beside their place, then renamed, so that none is ever half there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

__all__ = ["write_csv", "write_parquet", "write_text"]


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, floats with six significant digits."""
    _replace(path, lambda part: table.to_csv(part, index=False, float_format="%.6g"))


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet."""
    _replace(path, lambda part: table.to_parquet(part, index=False))


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text."""
    _replace(path, lambda part: part.write_text(text, encoding="utf-8"))
