"""MoBA and NSA layers against the float64 oracle."""

from __future__ import annotations

import block_oracle
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from sf.attention.blocks import MobaAttention, NsaAttention
from sf.attention.blocks import attend as blocks
from sf.attention.blocks.attend import Place
from sf.attention.blocks.nsa import Weights
from sf.attention.blocks.replace import Forward, block_attention
from sf.attention.trace import equivalent_tokens
from sf.errors import UnsupportedModelError

SIZE = 8
SCALING = SIZE**-0.5


def draw(lengths, width, heads, groups, seed):
    """q, k, v of one layer, left-padded, float64."""
    generator = torch.Generator().manual_seed(seed)

    def part(count):
        shape = (len(lengths), count, width, SIZE)
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 2

    valid = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return part(heads), part(groups), part(groups), valid


def run(attention, q, k, v, valid, module=None, **kwargs):
    module = module or nn.Module()
    module.layer_idx = 0
    place = Place.of(valid, q.shape[2])
    forward = Forward(attention, valid, q.shape[2], q.shape[2], place)
    out, _ = block_attention(
        module, q, k, v, None, scaling=SCALING, block_forward=forward, **kwargs
    )
    return out.transpose(1, 2), forward.pairs[0]


def rows(valid, *parts):
    for row, mask in enumerate(valid):
        columns = mask.nonzero()[:, 0]
        if len(columns):
            yield row, columns, [part[row][..., columns, :].numpy() for part in parts]


@pytest.fixture(params=["masked", "gathered"])
def form(request, monkeypatch):
    if request.param == "gathered":
        monkeypatch.setattr(blocks, "MASKED_ELEMENTS", 0)


SHAPES = {
    "lengths": st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any),
    "pad": st.integers(0, 5),
    "groups": st.sampled_from([1, 2]),
    "share": st.sampled_from([1, 3]),
    "seed": st.integers(0, 1000),
}


@pytest.mark.usefixtures("form")
@settings(max_examples=25, deadline=None)
@given(**SHAPES, top_k=st.integers(1, 6), size=st.sampled_from([1, 3, 8, 64]))
def test_moba_follows_the_oracle(lengths, pad, groups, share, seed, top_k, size):
    q, k, v, valid = draw(lengths, max(lengths) + pad, groups * share, groups, seed)
    out, pairs = run(MobaAttention(top_k, size), q, k, v, valid)
    assert out.isfinite().all()
    for row, columns, parts in rows(valid, q, k, v):
        expected, read = block_oracle.moba(*parts, top_k, size, SCALING)
        assert np.abs(out[row][:, columns].numpy() - expected).max() < 1e-12
        assert pairs[row] == pytest.approx(read)
        tokens = equivalent_tokens(pairs[row])
        assert tokens == pytest.approx(block_oracle.equivalent(read))


@pytest.mark.usefixtures("form")
@settings(max_examples=20, deadline=None)
@example(
    lengths=[0, 27], pad=0, groups=2, share=1, seed=0, top_n=4, sizes=(4, 2, 4), window=1
)  # windows over two blocks
@given(
    **SHAPES,
    top_n=st.integers(3, 6),
    sizes=st.sampled_from([(4, 2, 4), (2, 2, 6), (8, 4, 4), (4, 4, 8)]),
    window=st.sampled_from([1, 5, 12, 100]),
)
def test_nsa_follows_the_oracle(lengths, pad, groups, share, seed, top_n, sizes, window):
    heads, width = groups * share, max(lengths) + pad
    block, stride, size = sizes
    q, k, v, valid = draw(lengths, width, heads, groups, seed)
    torch.manual_seed(seed)
    module = nn.Module()
    module.nsa = Weights(16, heads, SIZE, block).double()
    for parameter in module.nsa.parameters():
        nn.init.normal_(parameter, std=0.5)
    gates = module.nsa.gates(torch.randn(len(lengths), width, 16, dtype=torch.float64))
    attention = NsaAttention(top_n, block, stride, size, window)
    out, pairs = run(attention, q, k, v, valid, module, block_gates=gates)
    assert out.isfinite().all()
    phi = {name: numpy_phi(getattr(module.nsa, f"compress_{name}")) for name in ("key", "value")}
    for row, columns, parts in rows(valid, q, k, v):
        gate = gates[:, row][..., columns].detach().numpy()
        expected, read, clear = block_oracle.nsa(
            *parts, gate, phi, top_n, block, stride, size, window, SCALING
        )
        gap = np.abs(out[row][:, columns].detach().numpy() - expected)
        assert gap[:, clear].max() < 1e-11
        if clear.all():
            assert pairs[row] == pytest.approx(read)


def numpy_phi(compress):
    """Eq. (7) from its weights."""
    place, w1, b1, w2, b2 = (p.detach().numpy() for p in compress.parameters())

    def phi(windows):
        inner = (windows + place).reshape(len(windows), -1) @ w1.T + b1
        return windows.mean(1) + inner / (1 + np.exp(-inner)) @ w2.T + b2

    return phi


@pytest.mark.parametrize("choosers", [2, 6])
@pytest.mark.parametrize("window", [None, 7])
def test_both_forms_have_the_same_gradients(choosers, window):
    q, k, v, valid = draw([30, 17], 33, 6, 2, 1)
    place = Place.of(valid, 33)
    count = 9
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(2, choosers, 33, count, generator=generator) < 0.3
    own = (place.position // 4)[:, None, :, None].expand(-1, choosers, -1, -1)
    chosen = chosen.scatter(3, own, True)
    by_form = []
    for form in (blocks._masked, blocks._gathered):
        leaves = [part.clone().requires_grad_() for part in (q, k, v)]
        out = form(*leaves, place.position, chosen, 4, SCALING, window)
        (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        by_form.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*by_form, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_equivalent_tokens_of_kept_tokens_are_the_kept_tokens():
    kept = torch.tensor([0.0, 1.0, 25.0, 16000.0], dtype=torch.float64)
    assert torch.allclose(equivalent_tokens(kept * (kept + 1) / 2), kept)


def test_low_precision_is_as_exact_as_dense_attention_in_it():
    """The error against float64 is at most twice that of SDPA when every block is selected."""
    q, k, v, valid = draw([64], 64, 4, 2, 3)
    exact, _ = run(MobaAttention(99, 8), q, k, v, valid)
    low = [part.to(torch.bfloat16) for part in (q, k, v)]
    k_all, v_all = (part.repeat_interleave(2, 1) for part in low[1:])
    plain = nn.functional.scaled_dot_product_attention(
        low[0], k_all, v_all, is_causal=True, scale=SCALING
    )
    position = Place.of(valid, 64).position
    chosen = torch.ones(1, 4, 64, 8, dtype=torch.bool)
    gathered = blocks._gathered(*low, position, chosen, 8, SCALING, None)
    bound = 2 * (plain.double() - exact).abs().max()
    assert (gathered.double() - exact).abs().max() <= bound


def test_unknown_stand_ins_are_refused():
    q, k, v, valid = draw([8], 8, 2, 1, 0)
    attention = MobaAttention(2, 4)
    for extra, message in (({"sliding_window": 4}, "windows"), ({"dropout": 0.1}, "dropout")):
        with pytest.raises(UnsupportedModelError, match=message):
            run(attention, q, k, v, valid, **extra)
    with pytest.raises(UnsupportedModelError, match="DynamicCache"):
        run(attention, q[:, :, :4], k, v, valid[:, :4])
