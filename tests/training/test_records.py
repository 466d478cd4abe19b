"""History and pictures of a run that was resumed."""

from __future__ import annotations

import json
from pathlib import Path

from sf.training.records import SampleTable, history_table, training_picture


def test_repeated_steps_count_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lines = [{"step": 5, "kl": 1.0}, {"step": 10, "kl": 2.0}, {"step": 10, "kl": 3.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = history_table(path)
    assert list(table["step"]) == [5, 10]
    assert list(table["kl"]) == [1.0, 3.0]


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


def test_picture_shows_what_was_logged(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    line = {"accuracy": 0.5, "token_ratio": 0.6, "token_ratio_layer/0": 0.7, "kl": 0.1}
    path.write_text("".join(json.dumps({"step": s, **line}) + "\n" for s in (1, 2)))
    figure = training_picture(history_table(path), "tiny")
    lines = [line.get_label() for axes in figure.axes for line in axes.get_lines()]
    assert {"accuracy", "token ratio", "kl"} <= set(lines)
    assert len(lines) == 4
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
