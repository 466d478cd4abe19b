"""A decode loop over random keys and values equals the one after a prefill."""

from __future__ import annotations

import pytest
import torch

from sf.profiling.generation import random_prefilled
from sf.profiling.models import SHAPES, Shape, load_by_name


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "llava_onevision"])
def test_a_random_cache_decodes(family, monkeypatch, tmp_path):
    shape = Shape(64, 2, 4, 2, 96, 256, True, "made", family)
    monkeypatch.setitem(SHAPES, "made", shape)
    model = load_by_name("made", tmp_path, "float32", "cpu", seed=0).model
    start = random_prefilled(model, 1, 40, [40, 7])
    # The positions that a prefill of as many tokens leaves.
    assert start.position.tolist() == [[40]] * (1 if family == "llava_onevision" else 3)
    loop = start.loop(3, repeat=2)
    assert [int(mask[0].sum()) for mask in loop.step.cache.masks] == [40, 7]
    loop.advance(3)
    assert loop.step.made.tolist() == [4, 4]
    assert torch.equal(loop.step.written[0], loop.step.written[1])
    assert loop.step.cache.keys[1].shape[:2] == (2, 2)
