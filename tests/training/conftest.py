"""Rows and base checkpoints that the tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_world

from sf.data.manifest import Row


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Images and videos in turn."""
    return tiny_world.write_rows(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session", params=["qwen2_5_vl", "qwen2_vl"])
def family(request: pytest.FixtureRequest) -> str:
    """Both supported families."""
    return str(request.param)


@pytest.fixture(scope="session")
def built(family: str, rows: list[Row]) -> tuple[Any, Any]:
    """Model and processor; tests must not change the weights."""
    return tiny_world.build(family, rows)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Path:
    """A saved Qwen2.5-VL base checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny_world.build("qwen2_5_vl", rows)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
