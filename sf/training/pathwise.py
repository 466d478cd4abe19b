"""A differentiable sparsity term, beyond the paper: fewer effective tokens per layer.

The paper's reward favours rollouts that kept fewer tokens, but the number of kept tokens is a step
function of the weights, so it has no gradient towards fewer tokens at the same threshold. The
term here is smooth: with m the probes' accumulated attention of a layer (the scores of top-p),
normalised to 1, the effective number of tokens is exp(H(m)) and the term is exp(H(m)) / l, in
(0, 1], averaged over layers. The gate decides whether it applies to a rollout (if correct).

Its gradient is added in the backward pass at each layer's attention output, so the layers return
nothing extra: gradient checkpointing and data parallelism work unchanged.

Shape suffixes: B rows, H heads, G KV heads, P probes, L prompt columns, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = [
    "Measure",
    "SparsityTerm",
    "effective_ratio",
    "probe_mass",
    "probe_rows",
    "tail_excess",
]

Measure = Callable[[Tensor, Tensor, Tensor, Any, float], Tensor]
"""Queries, keys, valid, probes, scaling -> (B,): called as `effective_ratio` is."""

_RECOMPUTE_ELEMENTS = 1 << 22
"""Score elements of one KV head above which they are computed again instead of stored."""


def probe_rows(
    query_BHLD: Tensor,
    key_BGLD: Tensor,
    valid_BL: Tensor,
    probes: Any,
    scaling: float,
    reduce: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of `reduce` on the probes' attention rows, one KV head at a time.

    Long prompts' rows are computed again in the backward pass instead of stored.

    Args:
        query_BHLD, key_BGLD, valid_BL, probes, scaling: as in `effective_ratio`.
        reduce: weights (B, query heads of one KV head, P, L) -> (B, P, ...), summed over heads.

    Returns:
        `reduce` summed over all heads, and the probes' column_BP and present_BP; what is said of a
        slot without a probe has no meaning.
    """
    column_BP, present_BP = probes.columns(valid_BL)
    batch, heads, length, size = query_BHLD.shape
    groups = key_BGLD.shape[1]
    index = column_BP[:, None, :, None].expand(-1, heads, -1, size)
    rows = (query_BHLD.gather(2, index).float() * scaling).view(
        batch, groups, heads // groups, -1, size
    )
    future_BPL = torch.arange(length, device=column_BP.device) > column_BP[..., None]
    # A probe slot without a probe looks at everything: no empty softmax.
    hidden_BPL = (future_BPL | ~valid_BL[:, None]) & present_BP[..., None]

    def of_group(query_BRPD: Tensor, key_BLD: Tensor) -> Tensor:
        score = torch.einsum("brpd,bld->brpl", query_BRPD, key_BLD)
        score = score.masked_fill(hidden_BPL[:, None], float("-inf"))
        return reduce(torch.softmax(score, dim=-1))

    total = torch.zeros((), device=query_BHLD.device)
    recompute = batch * (heads // groups) * column_BP.shape[1] * length > _RECOMPUTE_ELEMENTS
    for group in range(groups):
        given = (rows[:, group], key_BGLD[:, group].float())
        if recompute:
            total = total + checkpoint(of_group, *given, use_reentrant=False)
        else:
            total = total + of_group(*given)
    return total, column_BP, present_BP


def probe_mass(
    query_BHLD: Tensor, key_BGLD: Tensor, valid_BL: Tensor, probes: Any, scaling: float
) -> Tensor:
    """m: what selection sorts by, the probes' attention of each key, as shares (B, L) float32.

    Differentiable in queries and keys. The arguments are those of `effective_ratio`.
    """
    total_BPL, _, present_BP = probe_rows(
        query_BHLD, key_BGLD, valid_BL, probes, scaling, lambda weight_BRPL: weight_BRPL.sum(1)
    )
    mass_BL = (total_BPL * present_BP[..., None]).sum(1) / query_BHLD.shape[1]
    return mass_BL / present_BP.sum(1, keepdim=True).clamp(min=1)


def effective_ratio(
    query_BHLD: Tensor, key_BGLD: Tensor, valid_BL: Tensor, probes: Any, scaling: float
) -> Tensor:
    """exp(H(m)) / l per row, differentiable in queries and keys.

    Args:
        query_BHLD: after rope.
        key_BGLD: after rope.
        valid_BL: bool, False on padding.
        probes: `sf.selection.Probes`, the same as selection's.
        scaling: of the scores.

    Returns:
        (B,) float32 in (0, 1].
    """
    share = probe_mass(query_BHLD, key_BGLD, valid_BL, probes, scaling)
    entropy = -torch.special.xlogy(share, share.clamp(min=1e-12)).sum(1)
    return entropy.exp() / valid_BL.sum(1).clamp(min=1)


def tail_excess(
    query_BHLD: Tensor,
    key_BGLD: Tensor,
    valid_BL: Tensor,
    probes: Any,
    scaling: float,
    *,
    token_ratio: float,
    retention_p: float,
) -> Tensor:
    """How much mass lies outside the largest `token_ratio` of a prompt's tokens, per row.

    With r the mass outside them, log(r / (1 - p)) where r exceeds 1 - p, else 0: top-p at p keeps
    no more than `token_ratio` of the tokens exactly where it is 0 (rounded up to a token).

    Args:
        query_BHLD, key_BGLD, valid_BL, probes, scaling: as in `effective_ratio`.
        token_ratio: share of the tokens that is to hold the mass p.
        retention_p: p, below 1.

    Returns:
        (B,) float32, 0 or more.
    """
    share = probe_mass(query_BHLD, key_BGLD, valid_BL, probes, scaling)
    count = (valid_BL.sum(1, keepdim=True) * token_ratio).ceil()
    place = torch.arange(share.shape[1], device=share.device)
    ordered = share.sort(dim=1, descending=True).values
    outside = (ordered * (place >= count)).sum(1)
    return torch.log(outside.clamp(min=1e-12) / (1 - retention_p)).clamp(min=0)


class _AddGradient(torch.autograd.Function):
    """Hands `output` on; in the backward pass `term` gets the gradient `coefficient`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, term: Tensor, coefficient: Tensor) -> Tensor:
        ctx.save_for_backward(coefficient.to(term.dtype))
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (coefficient,) = ctx.saved_tensors
        return grads[0], coefficient, None


@dataclass
class SparsityTerm:
    """Goes into the model's forward as `sparsity_term` and reaches every layer's attention.

    Run it inside `sparsify(..., skip_dropped=False)`: skipped projections of long prompts have no
    gradient in the probes' queries, and at p = 1 the model's own attention knows of no term.

    Attributes:
        coefficient: (B,) d loss / d effective ratio of a row, all layers together.
        shares: (J,) of the coefficient that each layer gets; sums to 1.
        measure: the term itself.
        ratios: layer -> (B,) the term's value, without gradient.
    """

    coefficient: Tensor
    shares: Tensor
    measure: Measure = effective_ratio
    ratios: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self, state: Any, layer: int, query: Tensor, key: Tensor, scaling: float, output: Tensor
    ) -> Tensor:
        """A layer's attention output, with the term's gradient tied to it.

        Args:
            state: the forward's `sf.attention.forward_state.ForwardState`.
            layer: its index.
            query, key: (B, ., L, D) after rope, prompt and completion.
            scaling: of the scores.
            output: (B, L, H, D).
        """
        if state.valid is None or not output.requires_grad:
            return output
        width = state.valid.shape[1]
        ratio = self.measure(
            query[:, :, :width], key[:, :, :width], state.valid, state.policy.probes, scaling
        )
        return self.apply(layer, output, ratio)

    def apply(self, layer: int, output: Tensor, ratio: Tensor) -> Tensor:
        """`output`, with the term's gradient tied to it."""
        self.ratios[layer] = ratio.detach()
        return _AddGradient.apply(output, ratio, self.coefficient * self.shares[layer])

    @property
    def mean_ratio(self) -> Tensor:
        """(B,), mean over layers."""
        assert len(self.ratios) == len(self.shares), "some layer's attention was not watched"
        return torch.stack(list(self.ratios.values())).mean(0)
