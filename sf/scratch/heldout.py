"""Accuracy of a base model on the held-out questions, by media and problem type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sf.data.manifest import read_manifest
from sf.evaluation.answer import Answer, answer_rows
from sf.evaluation.intervals import wilson
from sf.models.load import load_model, load_processor
from sf.tables import write_csv, write_parquet

if TYPE_CHECKING:
    from sf.scratch.config import BaseModelParameters

__all__ = ["accuracy_table", "measure_heldout"]

_BATCH = 64


def accuracy_table(answers: list[Answer]) -> pd.DataFrame:
    """Accuracy with 95 % Wilson intervals by media and problem type, with totals.

    Columns: data_type and problem_type ("all" for totals), questions, accuracy, low, high.
    """
    lines = []
    for media in ("image", "video", "all"):
        seen = [a for a in answers if media in (a.data_type, "all")]
        for kind in (*sorted({a.problem_type for a in seen}), "all"):
            chosen = [a.correct for a in seen if kind in (a.problem_type, "all")]
            if chosen:
                low, high = wilson(sum(chosen), len(chosen))
                share = sum(chosen) / len(chosen)
                lines.append((media, kind, len(chosen), share, low, high))
    names = ["data_type", "problem_type", "questions", "accuracy", "low", "high"]
    return pd.DataFrame(lines, columns=names)


def measure_heldout(p: BaseModelParameters, folder: Path) -> dict[str, float]:
    """Answer the held-out split with full attention and write the tables.

    Args:
        p: the parameters.
        folder: of the checkpoint, into which `tables/` is written.

    Returns:
        `heldout_accuracy`, overall and for each media type.
    """
    rows = read_manifest(p.data / "heldout.parquet")
    answers = answer_rows(
        load_model(folder, dtype=p.runtime.dtype, device=p.runtime.device),
        load_processor(folder),
        rows,
        p.vision,
        batch=_BATCH,
        max_new_tokens=p.answering.max_completion_tokens,
        template=p.answering.prompt_template,
        cutoff=p.answering.correctness_cutoff,
    )
    table = accuracy_table(answers)
    write_csv(table, folder / "tables" / "heldout.csv")
    frame = pd.DataFrame(
        [(a.id, a.data_type, a.problem_type, a.reply, a.correct) for a in answers],
        columns=["id", "data_type", "problem_type", "reply", "correct"],
    )
    write_parquet(frame, folder / "tables" / "heldout_answers.parquet")
    totals = table[table["problem_type"] == "all"].set_index("data_type")["accuracy"]
    return {
        "heldout_accuracy" + ("" if media == "all" else f"_{media}"): float(value)
        for media, value in totals.items()
    }
