"""A layer of VideoNSA against the float64 oracle."""

from __future__ import annotations

import block_oracle
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_block_attention import SCALING, SIZE, draw, rows
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sf.attention.blocks import VideoNsaAttention, nsa
from sf.attention.blocks import attend as blocks
from sf.attention.blocks import videonsa as layer
from sf.attention.blocks.attend import Place
from sf.attention.blocks.kinds import Kinds
from sf.attention.blocks.replace import Forward, block_attention
from sf.attention.blocks.videonsa import Weights
from sf.training.block_config import VideoNsaSettings


@pytest.fixture(params=["masked", "gathered"])
def form(request, monkeypatch):
    if request.param == "gathered":
        monkeypatch.setattr(blocks, "MASKED_ELEMENTS", 0)
        for module in (layer, nsa):
            monkeypatch.setattr(module, "QUERIES_AT_ONCE", 7)


@pytest.mark.usefixtures("form")
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    pad=st.integers(0, 4),
    groups=st.sampled_from([1, 2]),
    share=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
    top_n=st.integers(1, 5),
    size=st.sampled_from([1, 3, 8]),
    window=st.sampled_from([1, 5, 100]),
    visual_share=st.sampled_from([0.1, 0.6, 1.0]),
)
def test_a_layer_follows_the_oracle(
    lengths, pad, groups, share, seed, top_n, size, window, visual_share
):
    heads, width = groups * share, max(lengths) + pad
    q, k, v, valid = draw(lengths, width, heads, groups, seed)
    torch.manual_seed(seed)
    visual = (torch.rand(len(lengths), width) < visual_share) & valid
    assume(visual.any())  # else the model's own attention runs
    hidden = torch.randn(len(lengths), width, 16, dtype=torch.float64)
    module, attention = nn.Module(), VideoNsaAttention(top_n, size, window)
    module.videonsa, module.layer_idx = Weights(16, heads).double(), 0
    for parameter in module.videonsa.parameters():
        nn.init.normal_(parameter, std=0.3)
    place, kinds = Place.of(valid, width), Kinds.of(visual, valid)
    state = Forward(attention, valid, width, width, place, kinds=kinds)
    gates = attention.gates(module, hidden, state)
    inputs = {"scaling": SCALING, "block_forward": state, "block_gates": gates}
    out = block_attention(module, q, k, v, None, **inputs)[0].transpose(1, 2)
    assert out.isfinite().all()
    weights = [parameter.detach().numpy() for parameter in module.videonsa.parameters()]
    for row, columns, parts in rows(valid, q, k, v):
        expected_gates = block_oracle.gelu_gates(hidden[row, columns].numpy(), *weights, heads)
        mask = visual[row, columns].numpy()
        expected, read = block_oracle.videonsa(
            *parts, mask, expected_gates, top_n, size, window, SCALING
        )
        assert np.abs(out[row][:, columns].detach().numpy() - expected).max() < 1e-11
        assert state.pairs[0][row] == pytest.approx(read)


class Largest(TorchDispatchMode):
    """The number of elements of the largest floating-point result."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                self.elements = max(self.elements, part.numel())
        return out


@torch.no_grad()
def test_a_long_prompt_makes_no_square_of_scores():
    length, text, attention = 4096, 100, VideoNsaAttention(2, 64, 64)
    query, key, value = torch.randn(3, 1, 1, length + text, SIZE).unbind()
    visual = torch.arange(length + text)[None] < length
    valid = torch.ones_like(visual)
    module, state = nn.Module(), Forward(
        attention, valid, length + text, length + text, Place.of(valid, length + text),
        kinds=Kinds.of(visual, valid),
    )  # fmt: skip
    module.layer_idx, gates = 0, torch.full((3, 1, 1, length), 0.5)
    with Largest() as largest:
        block_attention(
            module, query, key, value, None, scaling=SCALING, block_forward=state, block_gates=gates
        )
    assert largest.elements <= length**2 / 16


@pytest.mark.parametrize("length", [64, 257])
@pytest.mark.parametrize(
    "settings_",
    [
        VideoNsaSettings(token_ratio=0.4, block=8, window=9),
        VideoNsaSettings(top_n=3, block=4, window=6),
    ],
)
def test_the_expected_token_ratio_is_that_of_visual_tokens(settings_, length):
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 1, 2, length, SIZE).unbind()
    attention, place = settings_.attention(), torch.arange(length)[None]
    gates = torch.ones(3, 1, 2, length)
    _, read = attention.attend_visual(query, key, value, place, SCALING, gates)
    measured = block_oracle.equivalent(float(read.double().mean(1).sum())) / length
    expected = settings_.expected_ratio(length)
    assert expected - 0.05 <= measured <= expected + 1e-6  # a selected block can lie in the window
    if settings_.token_ratio and length > 64:  # a query's own block is less than that share
        assert measured == pytest.approx(settings_.token_ratio, abs=0.05)
