"""Log-probabilities of given tokens instead of a model's logits.

A vocabulary has 152,000 entries: the logits of eight answers of 1,024 tokens take 5 GB in float32,
and their backward pass as much again. Here the head runs over blocks of tokens. With more
than one block, the logits are recomputed in the backward pass (torch's checkpoint), so the memory
is that of one block for any number of rollouts.

Shapes: R rollouts, C tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sf.attention.decoder_hooks import unwrapped

__all__ = ["TokenScores", "in_blocks", "replaced_head", "scored", "scores_of"]

Head = Callable[[Tensor], Tensor]
"""Hidden states (..., H) -> logits (..., V)."""

BLOCK_LOGITS = 1 << 26
"""Logits of one block at most: 256 MiB in float32."""


class TokenScores(NamedTuple):
    """Each (R, C) float32.

    Attributes:
        logps: log-probabilities of the tokens.
        entropies: of the distributions that they were drawn from.
        likeliest: 1 where the token is the likeliest one, else 0.
    """

    logps: Tensor
    entropies: Tensor
    likeliest: Tensor

    @classmethod
    def of(cls, output: Any) -> TokenScores:
        """Computed from the output of a model's forward pass under `scored`."""
        return cls(*output.logits.unbind(-1))


def scores_of(
    logits: Tensor, targets: Tensor, temperature: float, *, entropy_gradient: bool = False
) -> TokenScores:
    """Scores from logits (..., V) of the tokens (...) that followed them.

    Args:
        temperature: the logits are divided by it.
        entropy_gradient: entropies have a gradient.
    """
    every = torch.log_softmax(logits.float() / temperature, dim=-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = -(every.exp() * every).sum(-1)
    likeliest = (every.argmax(-1) == targets).float()
    return TokenScores(every.gather(-1, targets[..., None]).squeeze(-1), entropies, likeliest)


@contextmanager
def scored(
    model: Any, targets: Tensor, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> Iterator[None]:
    """A forward in which the head gives scores instead of logits; `TokenScores.of` reads them.

    They are the output of the forward pass, so that wrappers of the model see them.

    Args:
        model: a causal language model, within PEFT or not. Its forward is to be asked for the
            logits of at least C positions (`logits_to_keep`); the first C are scored.
        targets: (R, C) long, the tokens that follow the positions.
        temperature: the logits are divided by it.
        entropy_gradient: entropies have a gradient.
    """

    def scores(head: Any, own: Head, hidden: Tensor) -> Tensor:
        def block(part: Tensor, tokens: Tensor) -> Tensor:
            given = scores_of(own(part), tokens, temperature, entropy_gradient=entropy_gradient)
            return torch.stack(given, dim=-1)

        return in_blocks(block, head.weight.shape[0], hidden[:, : targets.shape[1]], targets)

    with replaced_head(model, scores):
        yield


@contextmanager
def replaced_head(model: Any, forward: Callable[[Any, Head, Tensor], Tensor]) -> Iterator[None]:
    """A forward in which the head gives what `forward` makes of the hidden states.

    Args:
        model: a causal language model, within PEFT or not.
        forward: head, its own forward, hidden states (R, C, H) -> what the model gives as logits.
    """
    head: Any = unwrapped(model).get_output_embeddings()
    own, held = head.forward, vars(head).get("forward")
    vars(head)["forward"] = lambda hidden: forward(head, own, hidden)
    try:
        yield
    finally:
        vars(head).pop("forward")
        if held is not None:
            vars(head)["forward"] = held


def in_blocks(block: Callable[..., Tensor], logits: int, *inputs: Tensor) -> Tensor:
    """`block` over parts of the tokens, each recomputed in the backward pass.

    Args:
        block: parts of the inputs (n, ...) -> (n, values).
        logits: that `block` makes of a token.
        inputs: (R, C, ...).

    Returns:
        (R, C, values).
    """
    shape, tokens = inputs[0].shape[:2], max(1, BLOCK_LOGITS // logits)
    if shape.numel() <= tokens:
        return block(*inputs)
    parts = zip(*(given.flatten(0, 1).split(tokens) for given in inputs), strict=True)
    if torch.is_grad_enabled():
        done = [checkpoint(block, *part, use_reentrant=False) for part in parts]
    else:
        done = [block(*part) for part in parts]
    return torch.cat(done).view(*shape, -1)
