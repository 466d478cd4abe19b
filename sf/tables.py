"""Atomic table files, with arbitrary text from models and data in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sf.atomic_files import replacing
from sf.escaping import encodable, printable

__all__ = ["rows_at", "table_of", "write_csv", "write_parquet"]


def table_of(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    r"""Records as a table; lone surrogates, which pandas rejects, are escaped (``\ud800``)."""
    return pd.DataFrame(
        {
            name: encodable(value) if isinstance(value, str) else value
            for name, value in record.items()
        }
        for record in records
    )


def rows_at(table: pd.DataFrame, name: str, value: float) -> pd.DataFrame:
    """The rows of a table with a given number, to the six significant digits of a CSV.

    Args:
        table: from a file or in memory.
        name: of the column.
        value: the number.
    """
    return table[np.isclose(table[name], value, rtol=1e-5, atol=0.0)]


def write_csv(table: pd.DataFrame, path: Path, float_format: str | None = "%.6g") -> None:
    r"""Write a table as CSV, with six significant digits and printable text.

    Control characters are escaped, because pandas does not quote a bare carriage return, which
    would end the line.
    """
    shown = table.copy(deep=False)
    shown.columns = pd.Index([printable(str(name)) for name in table.columns])
    for at in range(table.shape[1]):
        values = table.iloc[:, at]
        if pd.api.types.is_numeric_dtype(values):
            continue
        texts = [printable(value) if isinstance(value, str) else value for value in values]
        if any(a is not b and a != b for a, b in zip(texts, values, strict=True)):
            shown.isetitem(at, np.fromiter(texts, dtype=object, count=len(texts)))
    with replacing(path) as part:
        shown.to_csv(part, index=False, float_format=float_format)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet."""
    with replacing(path) as part:
        table.to_parquet(part, index=False)
