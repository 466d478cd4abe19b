"""`history.jsonl`: the metrics of a job over its steps, one line per logged step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sf.json_lines import append_json_lines, read_json_lines

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HISTORY", "append_step", "history_table", "read_history"]

HISTORY = "history.jsonl"


def append_step(folder: Path, step: int, values: Mapping[str, float]) -> None:
    """Append the metrics of a step to the history in a result folder."""
    append_json_lines(folder / HISTORY, [{"step": step, **values}])


def read_history(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of each step of a result, in step order.

    A resumed job repeats the steps after its last checkpoint: the last line of a step replaces the
    earlier ones.

    Args:
        folder: of the result; without a history it has no steps.

    Raises:
        DataError: a line other than the last is damaged.
    """
    path = folder / HISTORY
    if not path.is_file():
        return {}
    steps = {int(line.pop("step")): line for line in read_json_lines(path, _with_step)}
    return dict(sorted(steps.items()))


def history_table(folder: Path) -> pd.DataFrame:
    """`read_history` as a table: a row per step, with the column `step` first."""
    import pandas as pd  # takes 0.4 s, and every stage imports this module

    steps = read_history(folder).items()
    return pd.DataFrame([{"step": step, **values} for step, values in steps] or {"step": []})


def _with_step(line: dict[str, float]) -> dict[str, float]:
    return {**line, "step": int(line["step"])}
