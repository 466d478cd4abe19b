"""Muon in float32 and in batches is torch's Muon."""

from __future__ import annotations

import pytest
import torch

from sf.models import build_tiny
from sf.scratch.optimizers import Muon, hybrid_optimizers, orthogonalised

WORDS = ["circle cross square triangle blue green red yellow"] * 3


def test_matrices_go_to_muon_and_the_rest_to_adamw():
    model, _ = build_tiny("qwen2_5_vl", WORDS, 0)
    muon, adamw = hybrid_optimizers(model.named_parameters(), 1e-3)
    assert isinstance(muon, Muon)
    assert all(p.ndim == 2 for g in muon.param_groups for p in g["params"])
    counted = sum(len(g["params"]) for o in (muon, adamw) for g in o.param_groups)
    assert counted == len(list(model.parameters()))
    embedding = model.get_input_embeddings().weight
    assert any(p is embedding for g in adamw.param_groups for p in g["params"])


@pytest.mark.parametrize("shape", [(12, 12), (6, 20), (20, 6)])
def test_it_is_torchs_step_but_for_its_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for _ in range(3)]
    own_weights, reference = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    optimizers = (
        Muon(own_weights, lr=0.1),
        torch.optim.Muon(reference, lr=0.1, weight_decay=0.01, adjust_lr_fn="original"),
    )
    for _ in range(3):
        for pair in zip(own_weights, reference, strict=True):
            gradient = torch.randn(shape, generator=generator)
            for weight in pair:
                weight.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other, before in zip(own_weights, reference, start, strict=True):
        moved = (other - before).norm()
        assert moved > 0.1
        assert (own - other).norm() < 0.05 * moved


def test_a_matrix_alone_is_the_matrix_in_a_batch():
    matrices = torch.randn(4, 7, 5, dtype=torch.float64)
    together = orthogonalised(matrices)
    values = torch.linalg.svdvals(together)
    assert 0.5 < values.min() < values.max() < 1.5
    for matrix, expected in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalised(matrix), expected)


def test_a_weight_without_gradient_stays():
    still, moved = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    moved.grad = torch.eye(3)
    Muon([still, moved], lr=0.1).step()
    assert torch.equal(still, torch.ones(3, 3))
    assert not torch.equal(moved, torch.ones(3, 3))
