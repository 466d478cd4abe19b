"""Rows do not affect each other: padding, order, the threshold of a neighbour."""

from __future__ import annotations

import pytest
import torch
from tiny_models import batch, generate, prompt

from sf import TopP, sparsify

THRESHOLDS = [0.5, 0.8, 0.95]


def sparse(model, given, p, **kwargs):
    with sparsify(model, TopP(p=p)) as trace:
        output = generate(model, given, **kwargs)
    return output, torch.stack(output.logits), trace


def unpadded(kept, valid):
    return [row[mask].tolist() for row, mask in zip(kept, valid.bool(), strict=True)]


def test_a_batch_with_different_p_equals_each_row_alone(model, rows, inputs):
    together, logits, trace = sparse(model, inputs, THRESHOLDS)
    assert trace.token_ratio.max() < 1
    for i, row in enumerate(rows):
        alone, own, own_trace = sparse(model, row, THRESHOLDS[i])
        assert torch.equal(together.sequences[i, -6:], alone.sequences[0, -6:])
        assert (logits[:, i] - own[:, 0]).abs().max() <= 1e-5
        for layer in range(3):
            wide = unpadded(trace.kept[layer], inputs["attention_mask"])[i]
            assert wide == own_trace.kept[layer][0].tolist()
        assert torch.equal(trace.layer_ratios[:, i], own_trace.layer_ratios[:, 0])
        assert torch.equal(trace.kv_lengths[:, i], own_trace.kv_lengths[:, 0])


def test_more_padding_and_another_order_change_nothing(model, rows):
    base, logits, trace = sparse(model, batch(rows), THRESHOLDS)
    order = [2, 0, 1]
    moved, other, other_trace = sparse(
        model, batch([rows[i] for i in order], width=60), [THRESHOLDS[i] for i in order]
    )
    assert torch.equal(base.sequences[order][:, -6:], moved.sequences[:, -6:])
    assert (logits[:, order] - other).abs().max() <= 1e-5
    assert torch.equal(trace.layer_ratios[:, order], other_trace.layer_ratios)


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_prompts_beyond_the_probes(model, p):
    rows = [prompt("video", 160, 5), prompt("image", 131, 6)]
    _, logits, trace = sparse(model, batch(rows), p, count=2)
    for i, row in enumerate(rows):
        _, own, own_trace = sparse(model, row, p, count=2)
        assert (logits[:, i] - own[:, 0]).abs().max() <= 1e-5
        assert torch.equal(trace.layer_ratios[:, i], own_trace.layer_ratios[:, 0])


def test_returned_sequences_may_have_their_own_p(model, rows):
    group = [0.4, 0.7, 0.9, 1.0]
    _, logits, trace = sparse(model, rows[0], group, num_return_sequences=4, do_sample=True)
    assert trace.token_ratio.tolist() == sorted(trace.token_ratio.tolist())
    for i, p in enumerate(group):
        _, own, own_trace = sparse(model, rows[0], p, count=1)
        assert (logits[0, i] - own[0, 0]).abs().max() <= 1e-5
        assert torch.equal(trace.layer_ratios[:, i], own_trace.layer_ratios[:, 0])


def test_a_larger_p_keeps_more_of_the_first_layer(model, rows):
    kept = [sparse(model, rows[1], p, count=1)[2].kept[0] for p in (0.3, 0.6, 0.9)]
    assert not (kept[0] & ~kept[1]).any()
    assert not (kept[1] & ~kept[2]).any()
    assert kept[0].sum() < kept[2].sum()
