"""The last lines of a study."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from sf.cli import ending as module
from sf.report.page import Page, write_page


def test_it_says_the_verdict_and_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "best_effort", nullcontext)
    monkeypatch.setattr(module, "client_of_store", lambda: "client")
    monkeypatch.setattr(module, "study_address", lambda client, study: f"http://{client}/{study}")
    (tmp_path / "tables").mkdir()
    verdict = ["It keeps 25 % of the tokens.", "The other 80 %."]
    write_page(Page("Title", ["lead"], verdict=verdict), tmp_path)
    assert all(sentence in (tmp_path / "index.html").read_text() for sentence in verdict)
    assert module.ending(tmp_path, "mini") == [
        "It keeps 25 % of the tokens.",
        "The other 80 %.",
        f"Report: {tmp_path / 'index.html'}",
        "MLflow (start it with `mlflow ui`): http://client/mini",
    ]
    (tmp_path / "verdict.txt").unlink()
    assert len(module.ending(tmp_path, "mini")) == 2
