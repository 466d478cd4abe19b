"""What lmms-eval prints and logs during an evaluation."""

from __future__ import annotations

from pathlib import Path

import lmms_eval.evaluator  # noqa: F401  (its import takes all handlers away)
import pytest
from loguru import logger

from sf.evaluation.run import _printing_to


def test_handlers_of_others_are_in_force_again(tmp_path: Path) -> None:
    """Also after an error; meanwhile only the file gets the messages."""
    heard: list[str] = []
    handler = logger.add(heard.append, level="DEBUG", format="{message}")

    def fail() -> None:
        with _printing_to(tmp_path / "log"):
            logger.info("meanwhile")
            print("printed")
            raise KeyError

    try:
        logger.debug("before")
        with pytest.raises(KeyError):
            fail()
        logger.debug("after")
    finally:
        logger.remove(handler)
    assert heard == ["before\n", "after\n"]
    written = (tmp_path / "log").read_text(encoding="utf-8")
    assert "meanwhile" in written
    assert "printed" in written
