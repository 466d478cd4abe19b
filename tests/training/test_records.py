"""History and pictures of a run that was resumed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sf.escaping import printable
from sf.history import append_step, history_table
from sf.training.records import SampleTable, training_picture


def test_samples_behind_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "completions.csv"
    first = SampleTable(path)
    for step in (1, 2, 3):
        first.add(step, [{"completion": f"old {step}, with a comma"}])
    again = SampleTable(path, done=2)
    again.add(3, [{"completion": "new"}])
    texts = list(SampleTable(path, done=9)._rows)
    assert [row["completion"] for row in texts] == [
        "old 1, with a comma", "old 2, with a comma", "new",
    ]  # fmt: skip


HOSTILE = ("a\rb", "a\r\nb", "nul \0", "\x1b[31m", "\ud83d", "\u2028", '"', "007", "NA", "", " x")


def test_any_answer_survives_a_resumption(tmp_path: Path) -> None:
    path = tmp_path / "completions.csv"
    answers = [
        {"id": str(at), "correct": 0.123456789, "completion": text}
        for at, text in enumerate(HOSTILE)
    ]
    SampleTable(path).add(1, answers)
    before = path.read_bytes()
    again = SampleTable(path, done=1)
    again.add(2, [{"id": "new", "correct": 1.0, "completion": "b\r"}])
    assert path.read_bytes() == before + b"2,new,1.0,b\\r\n"
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    assert table["completion"].tolist() == [*map(printable, HOSTILE), "b\\r"]
    assert table["step"].tolist() == ["1"] * len(HOSTILE) + ["2"]


def test_picture_shows_what_was_logged(tmp_path: Path) -> None:
    for step in (1, 2):
        values = {"accuracy": 0.5, "token_ratio": 0.6, "token_ratio_layer/0": 0.7, "kl": 0.1}
        append_step(tmp_path, step, values)
    figure = training_picture(history_table(tmp_path), "tiny")
    assert figure is not None
    lines = [line.get_label() for axes in figure.axes for line in axes.get_lines()]
    assert {"accuracy", "token ratio", "kl"} <= set(lines)
    assert len(lines) == 4
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
