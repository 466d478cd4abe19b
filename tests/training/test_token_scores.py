"""Scores of tokens without storing their logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sf.training import token_scores
from sf.training.token_scores import TokenScores, scored

ROWS, TOKENS, HIDDEN, VOCABULARY = 3, 5, 8, 40


class Model(nn.Module):
    """The last layer of a language model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.logits = self.head(hidden)
        return self


class Widest(TorchDispatchMode):
    """The largest tensor with a vocabulary dimension that any operator makes."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in torch.utils._pytree.tree_leaves(out):
            if not isinstance(part, torch.Tensor) or part.shape == (HIDDEN, VOCABULARY):
                continue  # the weights, turned
            if part.ndim > 1 and part.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, part.numel() // VOCABULARY)
        return out


@pytest.fixture
def given() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, TOKENS + 1, HIDDEN, generator=generator)
    return hidden, torch.randint(VOCABULARY, (ROWS, TOKENS), generator=generator)


@pytest.mark.parametrize("block", [1, 4, ROWS * TOKENS])
def test_scores_and_gradients_are_those_of_the_logits(given, block, monkeypatch) -> None:
    monkeypatch.setattr(token_scores, "BLOCK_LOGITS", block * VOCABULARY)
    hidden, targets = given
    gradients, results = [], []
    for blocks in (False, True):
        model, leaf = Model(), hidden.clone().requires_grad_()
        with Widest() as widest:
            if blocks:
                with scored(model, targets, 0.7, entropy_gradient=True):
                    scores = TokenScores.of(model(leaf))
            else:
                every = torch.log_softmax(model(leaf).logits[:, :-1] / 0.7, -1)
                logps = every.gather(2, targets[..., None]).squeeze(2)
                likeliest = (every.argmax(-1) == targets).float()
                scores = TokenScores(logps, -(every.exp() * every).sum(-1), likeliest)
            (scores.logps.sum() + 0.3 * scores.entropies.square().sum()).backward()
        assert widest.rows == (block if blocks else ROWS * (TOKENS + 1))
        gradients.append((leaf.grad, model.head.weight.grad))
        results.append(scores)
    for plain, in_blocks in zip(*results, strict=True):
        assert torch.allclose(in_blocks, plain, atol=1e-6)
    for plain, in_blocks in zip(*gradients, strict=True):
        assert torch.allclose(in_blocks, plain, atol=1e-5)


def test_entropies_have_a_gradient_only_where_it_is_asked_for(given) -> None:
    hidden, targets = given
    model = Model()
    for wanted in (False, True):
        with scored(model, targets, entropy_gradient=wanted):
            scores = TokenScores.of(model(hidden))
        (gradient,) = torch.autograd.grad(scores.entropies.sum(), model.head.weight)
        assert bool(gradient.any()) == wanted


def test_the_head_is_given_back(given) -> None:
    hidden, targets = given
    model = Model()
    with pytest.raises(RuntimeError, match="mat1"), scored(model, targets):
        model(hidden[..., :3])
    assert "forward" not in vars(model.head)
    own = model.head.forward
    model.head.forward = own
    with scored(model, targets):
        assert model(hidden).logits.shape == (ROWS, TOKENS, 3)
    assert vars(model.head)["forward"] is own
    assert model(hidden).logits.shape == (ROWS, TOKENS + 1, VOCABULARY)
