"""MInference against its algorithms written out pair by pair in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from slow_decoder import decode, record, reply_logits, softmax
from tiny_models import batch, generate, prompt

from sf.baselines.minference import PATTERNS, MInference, Patterns
from sf.errors import ConfigError


def largest(score, count, first=0):
    """Indices of the largest values: the leading `first` ones first, ties in ascending order."""
    order = sorted(range(len(score)), key=lambda i: (i >= first, -score[i] if i >= first else 0, i))
    return set(order[:count])


def head_masks(q, k, share, last, block):
    """The three patterns of one head, bool (L, L), and the last queries' weights."""
    length = len(q)
    reads = max(1, math.ceil(share * length - 1e-9))
    asked = list(range(max(0, length - last), length))
    weights = np.zeros((len(asked), length))
    for r, i in enumerate(asked):
        weights[r, : i + 1] = softmax(q[i] @ k[: i + 1].T / math.sqrt(q.shape[-1]))
    columns = reads // 7
    vertical = largest(weights.sum(0), columns, min(30, columns // 2))
    diagonal = np.zeros(length)
    for r, i in enumerate(asked):
        for j in range(i + 1):
            diagonal[i - j] += weights[r, j]
    left = reads - columns
    slash = largest(diagonal, left, min(100, max(1, left // 2)))
    first = reads // 5
    groups = [range(b, min(b + block, length)) for b in range(0, length, block)]
    mean_q = np.array([q[list(g)].mean(0) for g in groups])
    mean_k = np.array([k[list(g)].mean(0) for g in groups])
    chosen = []
    for b in range(len(groups)):
        score = np.full(len(groups), -1.0)
        score[: b + 1] = softmax(mean_q[b] @ mean_k[: b + 1].T / math.sqrt(q.shape[-1]))
        chosen.append(largest(score, math.floor(share * len(groups) + 1e-9)))
    masks = {name: np.zeros((length, length), dtype=bool) for name in PATTERNS}
    for i in range(length):
        for j in range(i + 1):
            masks["vertical_slash"][i, j] = j in vertical or i - j in slash
            masks["a_shape"][i, j] = j < first or i - j < reads - first
            masks["block_sparse"][i, j] = j // block in chosen[i // block]
    return masks, weights, asked


def best(masks, weights, asked):
    held = {name: (weights * masks[name][asked]).sum() for name in PATTERNS}
    return max(PATTERNS, key=lambda name: (held[name], -PATTERNS.index(name)))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("length", [40, 150])
def test_patterns_of_every_head(share, length):
    generator = torch.Generator().manual_seed(length)
    query, key = (torch.randn(6, length, 8, generator=generator) * 2 for _ in range(2))
    # Heads of each kind: a common direction, nearness, a block.
    key[:2, 5] += 4
    query[:2] += key[:2, 5:6] / 4
    patterns = Patterns(query, key, 8**-0.5, share, block=16)
    kinds = patterns.best()
    for head in range(6):
        q, k = query[head].double().numpy(), key[head].double().numpy()
        masks, weights, asked = head_masks(q, k, share, 64, 16)
        for kind, name in enumerate(PATTERNS):
            mask = patterns.mask(torch.arange(length), torch.full((6,), kind))[head]
            assert np.array_equal(mask.numpy(), masks[name]), name
        assert PATTERNS[kinds[head]] == best(masks, weights, asked)


@torch.no_grad()
@pytest.mark.parametrize(("media", "text"), [("image", 14), ("video", 150)])
@pytest.mark.parametrize("share", [0.15, 0.5])
def test_a_model_follows_the_patterns(model, media, text, share):
    row, pairs = prompt(media, text, 4), {}
    with MInference(share).apply(model) as trace:
        given = record(model, lambda: generate(model, row))
    width = given.prompt

    def mask_of(layer, q, k):
        heads, length = q.shape[:2]
        allowed = np.ones((heads, length, length), dtype=bool)
        for head in range(heads):
            masks = head_masks(q[head, :width], k[head // (heads // len(k)), :width], share, 64, 64)
            allowed[head, :width, :width] = masks[0][best(*masks)]
        pairs[layer] = allowed[:, :width, :width].sum() / heads
        return allowed

    logits, columns = decode(model, given, mask_of=mask_of)
    expected = reply_logits(logits, columns, given)
    assert (torch.stack(given.output.logits)[:, 0] - expected).abs().max() <= 1e-4
    # As many pairs as dense attention among n tokens: n (n + 1) / 2.
    for layer in range(3):
        tokens = (math.sqrt(1 + 8 * pairs[layer]) - 1) / 2
        assert trace.layer_ratios[layer, 0].item() == pytest.approx(tokens / width, abs=1e-5)
    assert trace.token_ratio.item() < 1
    assert trace.prompt_kv.tolist() == [[width]] * 3


@torch.no_grad()
def test_blocks_of_queries_change_nothing(model, monkeypatch):
    given = batch([prompt("video", 60, 4), prompt("text", 80, 5)])
    with MInference(0.3).apply(model) as trace:
        whole = torch.stack(generate(model, given).logits)
    monkeypatch.setattr("sf.baselines.minference._MASK_ELEMENTS", 1)
    with MInference(0.3).apply(model) as pieces:
        pieced = torch.stack(generate(model, given).logits)
    assert (whole - pieced).abs().max() <= 1e-5
    assert torch.equal(trace.layer_ratios, pieces.layer_ratios)


def test_the_share_is_checked():
    with pytest.raises(ConfigError, match="share"):
        MInference(0.0)
