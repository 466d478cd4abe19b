"""The folder of each stage's result.

Both engines, the stages and the report derive their paths from `FOLDERS`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDERS", "RECORD", "STAMP", "TRAINED", "folder", "work_folder"]

STAMP = "stage.json"  # written last to a result folder; its presence marks a complete result
RECORD = "record.json"  # the copy of the stamp in the work folder

TRAINED = "{objective}/seed{train_seed}"  # a row with training: its name and seed

# `row` is the row's name in the tables: a method or a row with training.
FOLDERS = {
    "fetch": "results/{scale}/fetch/{what}",
    "prepare": "results/{scale}/prepare",
    "benchmarks": "results/{scale}/benchmarks",
    "base": "results/{scale}/base/{model}",
    "calibrate": "results/{scale}/calibrate/{model}",
    "train": f"results/{{scale}}/train/{{model}}/{TRAINED}",
    "accuracy_curve": "results/{scale}/accuracy_curve/{model}/{row}",
    "evaluate": "results/{scale}/evaluate/{model}/{row}/{suite}",
    "previews": "results/{scale}/previews/{suite}",
    "profile": "results/{scale}/profile/{model}",
    "table": "results/{scale}/table/{target}",
    "report": "reports/{scale}",
    "config": "results/{scale}/config",
}


def folder(kind: str, **axes: str) -> Path:
    """The result folder of `kind` for the given axis values, relative to the checkout."""
    return Path(FOLDERS[kind].format(**axes))


def work_folder(output: Path) -> Path:
    """The folder where a stage works, next to the output to allow the final rename."""
    return output.parent / f".{output.name}.work"
