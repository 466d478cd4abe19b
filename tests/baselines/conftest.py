"""The tiny models of the attention tests serve here too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "attention"))

from tiny_models import FAMILIES, batch, build, prompt

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models():
    return {family: build(family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def model(request, models):
    """A random model of each family; tests leave it as they found it."""
    return models[request.param]


@pytest.fixture
def rows():
    """An image, a video and a text prompt of different lengths."""
    return [prompt("image", 9, 1), prompt("video", 14, 2), prompt("text", 20, 3)]


@pytest.fixture
def inputs(rows):
    return batch(rows)
