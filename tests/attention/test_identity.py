"""p = 1 is the model itself."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build, generate

from sf import FixedMask, Threshold, TopK, TopP, sparsify


def logits(output):
    return torch.stack(output.logits)


@pytest.mark.parametrize("policy", [TopP(p=1.0), TopK(ratio=1.0), Threshold(value=0.0)])
def test_full_retention_is_dense_bit_for_bit(model, rows, inputs, policy):
    for given in (*rows, inputs):
        dense = generate(model, given)
        with sparsify(model, policy) as trace:
            sparse = generate(model, given)
        assert torch.equal(dense.sequences, sparse.sequences)
        assert torch.equal(logits(dense), logits(sparse))
        assert trace.token_ratio.tolist() == [1.0] * len(given["input_ids"])
        grown = trace.kv_lengths[0] - given["attention_mask"].sum(-1)
        assert grown.tolist() == [5] * len(grown)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dense_runs_the_models_own_attention(rows, implementation):
    model = build("qwen2_5_vl", implementation=implementation)
    dense = model(**rows[0])
    with sparsify(model, TopP(p=1.0)):
        assert torch.equal(model(**rows[0]).logits, dense.logits)
    assert model.model.language_model.config._attn_implementation == implementation


def test_a_layer_that_keeps_everything_runs_dense(model, rows, inputs):
    for given in (rows[1], inputs):
        valid = given["attention_mask"].bool()
        dense = generate(model, given)
        with sparsify(model, FixedMask([valid] * 3)):
            sparse = generate(model, given)
        assert torch.equal(dense.sequences, sparse.sequences)
        gap = (logits(dense) - logits(sparse)).abs().max()
        assert gap <= 1e-5
        assert torch.equal(dense.logits[0], sparse.logits[0])  # the prefill


def test_a_row_with_p_one_is_dense_among_sparse_rows(model, rows, inputs):
    dense = generate(model, rows[1])
    with sparsify(model, TopP(p=[0.5, 1.0, 0.5])) as trace:
        sparse = generate(model, inputs)
    assert torch.equal(dense.sequences[0, -6:], sparse.sequences[1, -6:])
    assert (logits(dense)[:, 0] - logits(sparse)[:, 1]).abs().max() <= 1e-5
    assert trace.token_ratio[1] == 1
    assert trace.token_ratio[0] < 1


def test_training_form_at_p_one_is_dense_with_its_gradients(model, inputs):
    def run():
        model.zero_grad()
        output = model(**inputs, labels=inputs["input_ids"], use_cache=False)
        output.loss.backward()
        return output.logits.detach(), [p.grad for p in model.parameters()]

    dense, dense_grads = run()
    with sparsify(model, TopP(p=1.0), prompt_width=30):
        sparse, sparse_grads = run()
    assert torch.equal(dense, sparse)
    for one, other in zip(dense_grads, sparse_grads, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
