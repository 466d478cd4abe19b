"""Twilight against its four steps written out token by token in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from slow_decoder import decode, record, reply_logits, softmax
from tiny_models import batch, generate, prompt

from sf.baselines.twilight import Twilight
from sf.errors import ConfigError


def tokens_read(q, keys, method):
    """The keys that one head's query reads."""
    seen = list(range(len(keys)))
    if len(keys) > method.token_budget:
        pages = [seen[i : i + method.page] for i in range(0, len(keys), method.page)]
        bounds = [
            sum(max(q[c] * keys[p][:, c].min(), q[c] * keys[p][:, c].max()) for c in range(len(q)))
            for p in pages
        ]
        count = math.ceil(method.token_budget / method.page)
        best = sorted(range(len(pages)), key=lambda p: (-bounds[p], p))[:count]
        seen = sorted(token for p in best for token in pages[p])
    levels = 2**method.bits - 1
    rounded = []
    for token in seen:
        low, step = keys[token].min(), (keys[token].max() - keys[token].min()) / levels
        rounded.append(np.round((keys[token] - low) / step) * step + low)
    weights = softmax(np.array(rounded) @ q / math.sqrt(len(q)))
    kept, held = [], 0.0
    for place in sorted(range(len(seen)), key=lambda i: (-weights[i], i)):
        if held >= method.retention_p:
            break
        kept.append(seen[place])
        held += weights[place]
    return kept


@torch.no_grad()
@pytest.mark.parametrize(
    "method",
    [
        Twilight(),
        Twilight(retention_p=0.6, dense_layers=0),
        Twilight(retention_p=0.9, dense_layers=1, token_budget=16, page=4, bits=3),
        Twilight(retention_p=1 - 1e-9, dense_layers=0, token_budget=9, page=4),
    ],
    ids=["published", "no_dense_layer", "pages", "pages_alone"],
)
@pytest.mark.parametrize("media", ["image", "video"])
def test_follows_its_steps(model, media, method):
    row, shares = prompt(media, 14, 4), {}
    with method.apply(model) as trace:
        given = record(model, lambda: generate(model, row))
    width = given.prompt

    def mask_of(layer, q, k):
        heads, length = q.shape[:2]
        allowed = np.ones((heads, length, length), dtype=bool)
        shares[layer] = []
        for i in range(width, length):
            for head in range(heads):
                if layer >= method.dense_layers:
                    keys = k[head // (heads // len(k)), : i + 1]
                    allowed[head, i] = False
                    allowed[head, i, tokens_read(q[head, i], keys, method)] = True
                shares[layer].append(allowed[head, i, : i + 1].mean())
        return allowed

    logits, columns = decode(model, given, mask_of=mask_of)
    expected = reply_logits(logits, columns, given)
    assert (torch.stack(given.output.logits)[:, 0] - expected).abs().max() <= 1e-4
    for layer in range(3):
        assert trace.layer_ratios[layer, 0].item() == pytest.approx(
            np.mean(shares[layer]), abs=1e-6
        )
    assert trace.token_ratio.item() < 1
    assert trace.kv_lengths.tolist() == [[width + 5]] * 3


@torch.no_grad()
def test_prefill_and_the_first_token_are_dense(model, rows):
    dense = generate(model, rows[0])
    with Twilight(retention_p=0.3, dense_layers=0).apply(model) as trace:
        sparse = generate(model, rows[0])
        assert trace.token_ratio.item() < 0.9
        generate(model, rows[0], 1)
        assert trace.token_ratio.tolist() == [1.0]
    assert torch.equal(dense.logits[0], sparse.logits[0])
    assert not torch.equal(dense.logits[3], sparse.logits[3])


@torch.no_grad()
def test_steps_after_a_rows_end_do_not_count(model, rows):
    """A row that has ended is fed until its batch ends; alone it is not."""
    method = Twilight(retention_p=0.5, dense_layers=0)
    with method.apply(model):
        free = model.generate(**batch(rows), max_new_tokens=8, do_sample=False, min_new_tokens=8)
    # The second row's third token becomes the end token.
    end = int(free[1, -6])
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [end]
    try:
        with method.apply(model) as trace:
            model.generate(**batch(rows), max_new_tokens=8, do_sample=False)
        for i, row in enumerate(rows):
            with method.apply(model) as own:
                model.generate(**row, max_new_tokens=8, do_sample=False)
            # A channel half-way between two levels may be rounded either way.
            assert torch.allclose(trace.layer_ratios[:, i], own.layer_ratios[:, 0], atol=2e-3)
            assert trace.steps[i] == own.steps[0]
        assert trace.steps[1] <= 2
        assert trace.steps.max() == 7
    finally:
        model.generation_config.eos_token_id = before


def test_an_error_within_a_step_comes_through_and_leaves_nothing(model, rows, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    dense = generate(model, rows[0])
    monkeypatch.setattr("sf.baselines.twilight._Attention.choose", fail)
    with pytest.raises(ZeroDivisionError), Twilight(retention_p=0.5).apply(model):
        generate(model, rows[0])
    assert model.get_decoder().config._attn_implementation == "sdpa"
    again = generate(model, rows[0])
    assert torch.equal(torch.stack(dense.logits), torch.stack(again.logits))


def test_p_is_checked():
    with pytest.raises(ConfigError, match=r"p = 1.1"):
        Twilight(retention_p=1.1)
