"""A checkpoint in LLaVA-NeXT's format, and what `sf convert` makes of it."""

from __future__ import annotations

from pathlib import Path

import llava_next
import pytest

from sf.models.convert_llava import convert_llava


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava_next") / "LLaVA-Video-tiny"
    llava_next.write(folder)
    return folder


@pytest.fixture(scope="session")
def target(source: Path) -> Path:
    folder = source.with_name("converted")
    assert convert_llava(str(source), folder)
    return folder
