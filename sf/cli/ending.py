"""The last lines of a study: the summary and the location of its results."""

from __future__ import annotations

from pathlib import Path

from sf.mlflow_store import best_effort, client_of_store
from sf.mlflow_study import study_address

__all__ = ["ending"]


def ending(report: Path, study: str) -> list[str]:
    """The report's sentences on the trained models, its page and MLflow's URL, one line each.

    Args:
        report: folder of the report.
        study: its name in MLflow; warns if the store does not respond.
    """
    verdict = report / "verdict.txt"
    lines = verdict.read_text(encoding="utf-8").splitlines() if verdict.is_file() else []
    lines.append(f"Report: {report / 'index.html'}")
    with best_effort("a question"):
        address = study_address(client_of_store(), study)
        lines.append(f"MLflow (start it with `mlflow ui`): {address}")
    return lines
