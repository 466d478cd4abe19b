"""Reads a benchmark's table row by row, so that an undecodable row costs no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["each_row"]

MOST = 200
"""Characters of an error in a reason; a longer one can contain the whole row."""


def each_row(dataset: Dataset) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The number of each row, and the row or the reason why it cannot be read.

    Iterating over the dataset itself ends at the first such row, for example at text that is not
    UTF-8, which the parquet format does not check.
    """
    for number in range(len(dataset)):
        try:
            yield number, dataset[number]
        except Exception as error:  # noqa: BLE001 - damaged tables raise errors of any class
            yield number, f"it cannot be read ({type(error).__name__}: {str(error)[:MOST]})"
