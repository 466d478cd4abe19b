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


@pytest.fixture(scope="session", params=tiny_world.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each supported family."""
    return str(request.param)


@pytest.fixture(scope="session")
def built(family: str, rows: list[Row]) -> tuple[Any, Any]:
    """Model and processor; tests must not change the weights."""
    return tiny_world.build(family, rows)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Path:
    """A saved Qwen2.5-VL base checkpoint."""
    return _saved("qwen2_5_vl", rows, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session", params=tiny_world.LLAVA)
def llava_base(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], request: pytest.FixtureRequest
) -> Path:
    """A saved base checkpoint of each LLaVA family."""
    return _saved(request.param, rows, tmp_path_factory.mktemp(request.param))


def _saved(family: str, rows: list[Row], folder: Path) -> Path:
    model, processor = tiny_world.build(family, rows)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
