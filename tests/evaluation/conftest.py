"""Synthetic benchmarks and tiny checkpoints that several tests read and none changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sf.evaluation.benchmarks import BENCHMARKS, EXTRA
from sf.mini.benchmarks import write_benchmarks

SAMPLES, SEED = 4, 3


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A benchmark home of all benchmarks, and the replies that score."""
    home = tmp_path_factory.mktemp("home")
    return home, write_benchmarks(home, SAMPLES, SEED, benchmarks=(*BENCHMARKS, *EXTRA))


@pytest.fixture(scope="session")
def home(stand_ins: tuple[Path, dict[str, list[str]]]) -> Path:
    """The benchmark home of `stand_ins`."""
    return stand_ins[0]


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A benchmark home that a test may damage."""
    return Path(shutil.copytree(home, tmp_path / "copy"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained tiny model of each family, saved with its processor.

    Its layers have large random weights: with the tiny models' own weights all replies are equal.
    """
    import torch

    from sf.models import build_tiny

    corpus = ["What color is the ring? A. red B. green Answer with the option's letter."] * 3
    saved = {}
    for family in ("qwen2_vl", "qwen2_5_vl"):
        model, processor = build_tiny(family, corpus, seed=1)
        generator = torch.Generator().manual_seed(1)
        for weight in model.model.language_model.layers.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.25, generator=generator)
        saved[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(saved[family])
        processor.save_pretrained(saved[family])
        (saved[family] / "stage.json").write_text('{"files": {}}')  # as a finished stage leaves it
    return saved
