"""Methods at matched ratio in the report."""

from __future__ import annotations

from pathlib import Path

import made_study
import pandas as pd

from sf.report.benchmark_tables import lines, measured
from sf.report.equal_cost import equal_cost_sections
from sf.tables import write_csv


def test_matched_methods_stand_beside_their_averages(tmp_path: Path) -> None:
    study = made_study.write_study(tmp_path)
    table = measured(study)
    rows = {kind: lines(table, study, kind) for kind in ("image", "video")}
    assert equal_cost_sections(study, rows) == []
    for row, ratio, reached in (("zipvl", 0.504, True), ("sparsity_forcing", 0.61, False)):
        folder = study.folder("evaluate", model="tiny", row=row, suite="all")
        made_study.stamp(
            folder,
            "evaluate",
            evaluate={"retention_p": 0.975, "match": {"token_ratio": 0.5, "tolerance": 0.01}},
        )
        line = {
            "method": "zipvl",
            "hyperparameter": "retention_p",
            "target": 0.5,
            "value": 0.91234567,
            "token_ratio": ratio,
            "accuracy": 0.9,
            "reached": reached,
            "measurements": 6,
            "rows": 200,
        }
        write_csv(pd.DataFrame([line]), folder / "tables" / "matched.csv")
    (section,) = equal_cost_sections(study, rows)
    (shown,) = section.tables
    assert [cell.text for cell in shown.rows[0]][:8] == [
        "tiny", "zipvl", "retention_p = 0.9123", "50.0", "50.4", "90.0", "70.0", "80.0",
    ]  # fmt: skip
    assert [cell.text for cell in shown.rows[1]][3:8] == ["50.0", "61.0", "90.0", "75.0", "50.0"]
    assert len(shown.rows) == 2
    assert len(shown.header) == len(shown.rows[0]) == 10
    assert section.notes == [
        "tiny, sparsity_forcing: the target ratio was not reached; the row shows the nearest one."
    ]
