from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, batch, build, prompt

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models():
    return {family: build(family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def model(request, models):
    """A random model of each family; tests restore it."""
    return models[request.param]


@pytest.fixture
def rows():
    """An image, a video and a text prompt of different lengths."""
    return [prompt("image", 9, 1), prompt("video", 14, 2), prompt("text", 20, 3)]


@pytest.fixture
def inputs(rows):
    return batch(rows)
