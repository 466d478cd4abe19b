"""Reads a parquet file to its end, in a worker process of `sf.isolation`."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import parquet

__all__ = ["table_fault"]

_ROWS = 64  # in memory at once, with their images


def table_fault(path: str) -> str:
    """Why a parquet file cannot be used; "" if it can.

    `datasets` itself fails without a name on a file without a row.
    """
    try:
        with parquet.ParquetFile(path) as table:
            rows = sum(batch.num_rows for batch in table.iter_batches(batch_size=_ROWS))
    except (OSError, pa.ArrowException, MemoryError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return f"cannot be read ({lines[0]})"
    return "" if rows else "holds no row"
