"""One layer against the float64 oracle, over many shapes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_follows, attend, select
from torch import nn

from sf.attention.backends import score_blocks, sdpa
from sf.attention.cache import prune_in_place
from sf.attention.forward_state import ForwardState
from sf.attention.layer import sparse_attention
from sf.profiling.memory import peak_of
from sf.selection import Probes, TopP

PROBES = Probes(recent=3, spread=4)


def tensors(lengths, width, heads, groups, size, seed, kind):
    """Left-padded q, k, v of one layer; `kind` decides how even the attention is."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        shape = (len(lengths), count, width, size)
        part = torch.randn(shape, generator=generator, dtype=torch.float64)
        if kind == "ties":
            part = part.sign() * (part.abs() > 1)
        return part * {"peaked": 4.0, "even": 0.02}.get(kind, 1.0)

    valid = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return draw(heads), draw(groups), draw(groups), valid


def run(q, k, v, valid, p, probes=PROBES, cache=None):
    plan = ForwardState(kind="prefill", policy=TopP(p=p, probes=probes), valid=valid)
    plan.cache = cache
    module = nn.Module()
    module.layer_idx, module.is_causal = 0, True
    module.config = SimpleNamespace(_attn_implementation="sdpa")
    module.num_key_value_groups = q.shape[1] // k.shape[1]
    causal = valid[:, None, None] & torch.ones(valid.shape[1], valid.shape[1]).bool().tril()

    out, _ = sparse_attention(module, q, k, v, causal, sparse_state=plan)
    return out, plan.kept[0]


def check(q, k, v, valid, p, probes=PROBES):
    cache = prune_in_place(None, 1)
    cache.layers[0].active = True
    cache.update(k, v, 0)
    out, kept = run(q, k, v, valid, p, probes, cache)
    for row in range(q.shape[0]):
        columns = valid[row].nonzero()[:, 0]
        assert not kept[row][~valid[row]].any()
        if len(columns) == 0:
            continue
        part = [t[row][:, columns].numpy() for t in (q, k, v)]
        share = p[row] if isinstance(p, list) else p
        wanted = select(part[0], part[1], share, probes.recent, probes.spread)
        chosen = kept[row, columns].numpy()
        assert_follows(chosen, wanted)
        expected = attend(*part, chosen)
        assert np.abs(out[row, columns].numpy() - expected).max() < 1e-12
        held = cache.layers[0]
        assert torch.equal(held.keys[row, :, -chosen.sum() :], k[row][:, columns[chosen]])
        assert torch.equal(held.values[row, :, -chosen.sum() :], v[row][:, columns[chosen]])
    assert out.isfinite().all()
    return kept


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 24), min_size=1, max_size=3).filter(any),
    pad=st.integers(0, 3),
    groups=st.sampled_from([1, 2]),
    share=st.sampled_from([1, 3]),
    kind=st.sampled_from(["plain", "peaked", "even", "ties"]),
    p=st.one_of(st.sampled_from([1e-9, 0.5, 1 - 1e-12, 1.0]), st.floats(0.01, 0.999)),
    seed=st.integers(0, 1000),
)
def test_a_layer_follows_the_oracle(lengths, pad, groups, share, kind, p, seed):
    width = max(lengths) + pad
    check(*tensors(lengths, width, groups * share, groups, 4, seed, kind), p)


@pytest.mark.parametrize("length", [127, 128, 129, 200])
def test_the_papers_probes_around_and_beyond_their_number(length):
    check(*tensors([length, 3], length, 2, 1, 4, length, "plain"), [0.6, 0.9], Probes())


@pytest.mark.parametrize("budgets", [["_SCORE_ELEMENTS"], ["_SCORE_ELEMENTS", "_MASK_ELEMENTS"]])
@pytest.mark.parametrize("rows_of_a_block", [1, 7, 64])
def test_blocks_and_single_rows_change_nothing(budgets, rows_of_a_block, monkeypatch):
    q, k, v, valid = tensors([40, 23, 31, 0], 40, 6, 2, 8, 5, "plain")
    whole, kept = run(q, k, v, valid, 0.7)
    for budget in budgets:
        monkeypatch.setattr(sdpa, budget, 1)
    monkeypatch.setattr(score_blocks, "_LEAST_ROWS", rows_of_a_block)
    monkeypatch.setattr(score_blocks, "_BLOCK_ELEMENTS", 1)
    pieces, again = run(q, k, v, valid, 0.7)
    assert torch.equal(kept, again)
    assert (whole - pieces).abs().max() < 1e-12
    check(q, k, v, valid, 0.7)


def test_a_long_prompt_never_holds_heads_x_probes_x_length():
    heads, length, plan = 16, 12_000, Probes()
    q, k, _, valid = tensors([length], length, heads, 2, 8, 0, "plain")
    column, present = plan.columns(valid)
    inputs = (q.float(), k.float(), column, present, valid, 0.3)

    def choose(mark):
        assert sdpa.SdpaBackend().probe_mass(*inputs).sum() == pytest.approx(128, rel=1e-4)
        mark()

    scores = heads * 128 * length * 4
    assert peak_of(choose, torch.device("cpu")).prefill < scores / 5


def test_a_batch_without_any_token_gives_zeros():
    q, k, v, valid = tensors([0, 0], 5, 2, 1, 4, 0, "plain")
    out, kept = run(q, k, v, valid, 0.5)
    assert not kept.any()
    assert not out.any()


def test_float32_and_bfloat16_choose_from_float32_scores():
    q, k, v, valid = tensors([60], 60, 4, 2, 16, 3, "plain")
    for dtype in (torch.float32, torch.bfloat16):
        part = [t.to(dtype) for t in (q, k, v)]
        _, kept = run(*part, valid, 0.6)
        wanted = select(*(t[0].double().numpy() for t in part[:2]), 0.6, 3, 4)
        assert_follows(kept[0].numpy(), wanted, slack=1e-5)


@pytest.mark.parametrize("tail", [0, 3])
def test_a_pruned_layer_knows_which_prompt_entries_are_padding(tail):
    """Rows that keep different numbers of tokens, a completion in the same pass, another token."""
    q, k, v, valid = tensors([12, 7], 12, 2, 1, 4, 5, "plain")
    width = 12 - tail
    state = ForwardState(
        kind="prefill", policy=TopP(p=0.7, probes=PROBES), valid=valid[:, :width], tail=tail
    )
    state.cache = prune_in_place(None, 1)
    layer = state.cache.layers[0]
    layer.active = True
    layer.update(k, v, 0)
    module = nn.Module()
    module.layer_idx = 0
    sparse_attention(module, q, k, v, None, sparse_state=state)
    counts = state.kept[0].sum(-1)
    assert counts[0] != counts[1]
    assert layer.prompt_valid.shape == (2, layer.kept_width) == (2, int(counts.max()))
    assert torch.equal(layer.prompt_valid.sum(-1), counts)
    new = [torch.randn(2, part.shape[1], 1, 4, dtype=torch.float64) for part in (q, k, v)]
    keys, values = layer.update(*new[1:], 0)
    then = ForwardState(kind="continue", policy=state.policy, tail=1, cache=state.cache)
    out, _ = sparse_attention(module, new[0], keys, values, None, sparse_state=then)
    for row, count in enumerate(counts.tolist()):
        seen = slice(-(count + tail + 1), None)
        score = new[0][row, :, 0] @ keys[row, 0, seen].T / 2
        assert (out[row, 0] - score.softmax(-1) @ values[row, 0, seen]).abs().max() < 1e-12
