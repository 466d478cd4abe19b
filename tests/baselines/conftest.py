"""The tiny models of the attention tests, and versions with NSA weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "attention"))

from tiny_models import FAMILIES, batch, build, prompt
from windowed_tower import windowed_model

from sf.attention.blocks import MobaAttention, NsaAttention, VideoNsaAttention, attach
from sf.attention.trained import FIELD, TrainedAttention

torch.set_num_threads(1)

NATIVE = NsaAttention(3, 4, 2, 4, 6)
WITH_WEIGHTS = {"nsa": NATIVE, "videonsa": VideoNsaAttention(2, 4, 6)}


@pytest.fixture(scope="session")
def models():
    """Models with the weights of NSA and VideoNSA, which no other method uses."""
    built = {family: build(family) for family in FAMILIES}
    for model in built.values():
        for attention in WITH_WEIGHTS.values():
            attach(model, attention)
    return built


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four tokens: the prompts here are shorter than one published block of 512."""
    monkeypatch.setattr(MobaAttention.__init__, "__defaults__", (3, 4))


@pytest.fixture(params=FAMILIES)
def model(request, models):
    """A random model of each family, recorded as trained with a method that needs weights."""
    model = models[request.param]
    attention = WITH_WEIGHTS.get(request.node.callspec.params.get("name"))
    if attention is None:
        yield model
        return
    setattr(model.config.get_text_config(), FIELD, TrainedAttention.of(attention).note())
    yield model
    delattr(model.config.get_text_config(), FIELD)


@pytest.fixture(scope="session", params=FAMILIES)
def windowed(request):
    return windowed_model(request.param)


@pytest.fixture
def rows():
    """An image, a video and a text prompt of different lengths."""
    return [prompt("image", 9, 1), prompt("video", 14, 2), prompt("text", 20, 3)]


@pytest.fixture
def inputs(rows):
    return batch(rows)
