"""Twilight (arXiv 2502.02770): top-p over estimated attention, per head and decoding step.

Shape suffixes: B rows, H heads, G KV heads, R = H / G, S cached tokens (aligned: a row's own come
first), N pages, D head size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from sf.attention import Trace
from sf.attention.blocks import BlockAttention, Replacement
from sf.attention.blocks.kinds import Kinds
from sf.attention.blocks.replace import Forward
from sf.attention.decoder_hooks import Call
from sf.attention.trace import PairTrace
from sf.baselines.full import Full
from sf.baselines.method import Hyperparameter, Method

__all__ = ["DecodeTrace", "Twilight"]


@dataclass(frozen=True)
class Twilight(Method):
    """Prefill is dense and the KV cache whole; each decoded token reads part of it (section 4).

    Per layer and query head, with the settings of the authors' code:
    1. select: Quest's pages of 16 tokens with the largest upper bound of q k, as many as hold
       `token_budget` tokens;
    2. estimate: softmax of q k / sqrt(d) over them, the keys rounded to 4 bits (per token, between
       its least and largest channel);
    3. prune: the fewest tokens whose estimated weights sum to at least p;
    4. attend to those with the exact keys.

    The first two layers decode densely. Heads choose for themselves, also where they share a KV
    head; rounded keys are made anew at each step, so this shows accuracy and budget, not speed. At
    p = 1 every step is dense, for any budget.

    Attributes:
        retention_p: p, the share of the estimated attention, in (0, 1].
        token_budget: tokens that step 1 leaves.
        page: tokens of a page. bits: of a rounded key's channel.
        dense_layers: layers, from the first, that decode densely.
    """

    name: ClassVar[str] = "twilight"
    text: ClassVar[str] = "dense prefill; each decoded token reads the top-p of pre-selected keys"
    paper: ClassVar[str] = "2502.02770 section 4"
    counts: ClassVar[str] = (
        "share of the cache that decoded tokens read, mean over heads and steps; KV whole"
    )
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("retention_p", 0.85, dense=1.0)

    retention_p: float = 0.85
    token_budget: int = 8192
    page: int = 16
    bits: int = 4
    dense_layers: int = 2

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        return Full().apply(model) if self.retention_p == 1 else _Steps(model, _Attention(self))


@dataclass
class DecodeTrace(PairTrace):
    """Of a method that is sparse in decoding alone.

    Attributes:
        read: float32 (layers, batch), sum over steps of the share of the cache that was read, mean
            over heads; None before the first step.
        steps: int64 (batch,), decoded tokens that were fed, those after a row's end left out.
    """

    read: Tensor | None = None
    steps: Tensor | None = None

    @property
    def layer_ratios(self) -> Tensor:
        """float32 (layers, batch), mean over steps; 1 where nothing was decoded."""
        if self.read is None or self.steps is None:
            return super(PairTrace, self).layer_ratios
        mean = self.read / self.steps.clamp(min=1)
        return torch.where(self.steps > 0, mean, 1.0)


class _Steps(Replacement):
    """Sums up what decoding steps read."""

    trace: DecodeTrace
    attention: _Attention

    def __init__(self, model: Any, attention: _Attention) -> None:
        super().__init__(model, attention, trace=DecodeTrace())
        config = getattr(self.owner, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        self._ends = torch.as_tensor([] if ends is None else ends).reshape(-1)
        self._running: Tensor | None = None

    def open(self) -> PairTrace:
        super().open()
        self._hook(self.owner.register_forward_pre_hook(self._note_ends, with_kwargs=True))
        return self.trace

    def _note_ends(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if not self.is_open:
            return
        if cache is None or not cache.get_seq_length():
            self._running = self.trace.read = self.trace.steps = None
        elif ids is not None and ids.shape[1] == 1:
            # A row's end token is fed only while other rows of its batch continue.
            ended = torch.isin(ids[:, 0], self._ends.to(ids.device))
            self._running = ~ended if self._running is None else self._running & ~ended
            self.attention.shares.clear()

    def after(self, kwargs: dict[str, Any], output: Any) -> None:
        super().after(kwargs, output)
        if not self.attention.shares or self._running is None:
            return
        shares = torch.stack([share.cpu() for share in self.attention.shares.values()])
        running, trace = self._running.cpu(), self.trace
        self.attention.shares.clear()
        trace.read = shares * running + (0 if trace.read is None else trace.read)
        trace.steps = running.long() + (0 if trace.steps is None else trace.steps)


@dataclass(frozen=True)
class _Attention(BlockAttention):
    """Steps 1 to 4.

    Attributes:
        shares: layer -> float32 (B,), of the newest step.
    """

    method: Twilight
    shares: dict[int, Tensor] = field(default_factory=dict)

    def applies(self, call: Call, kinds: Kinds | None) -> bool:
        return call.past > 0 and call.length == 1

    def attend(
        self,
        module: Any,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        scaling: float,
        forward: Forward,
        gates: Tensor | None,
    ) -> Tensor:
        column = torch.arange(key_BGSD.shape[2], device=key_BGSD.device)
        seen_BS = column <= forward.place.position
        if module.layer_idx < self.method.dense_layers:
            mask_BHS = seen_BS[:, None].expand(-1, query_BHLD.shape[1], -1)
        else:
            mask_BHS = self.choose(query_BHLD[:, :, 0], key_BGSD, seen_BS, scaling)
        read_BH = mask_BHS.sum(-1)
        self.shares[module.layer_idx] = (read_BH / seen_BS.sum(-1, keepdim=True)).mean(-1)
        forward.count(module.layer_idx, read_BH[..., None])
        return scaled_dot_product_attention(
            query_BHLD, key_BGSD, value_BGSD, mask_BHS[:, :, None], scale=scaling, enable_gqa=True
        )

    @torch.no_grad()
    def choose(
        self, query_BHD: Tensor, key_BGSD: Tensor, seen_BS: Tensor, scaling: float
    ) -> Tensor:
        """bool (B, H, S)."""
        work = torch.promote_types(query_BHD.dtype, torch.float32)
        query_BGRD = query_BHD.to(work).unflatten(1, (key_BGSD.shape[1], -1))
        key = key_BGSD.to(work)
        seen = seen_BS[:, None, None]
        if key.shape[2] > self.method.token_budget:
            seen = seen & self._pages(query_BGRD, key, seen_BS)
        score = query_BGRD @ _rounded(key, self.method.bits).transpose(2, 3) * scaling
        weight = score.masked_fill(~seen, -torch.inf).softmax(-1)
        order = weight.argsort(dim=-1, descending=True, stable=True)
        held = weight.gather(-1, order).double().cumsum(-1)
        # A token is needed as long as those before it hold less than p.
        needed = pad(held[..., :-1], (1, 0)) < self.method.retention_p
        kept = torch.zeros_like(needed).scatter_(-1, order, needed) & seen
        return kept.flatten(1, 2)

    def _pages(self, query_BGRD: Tensor, key_BGSD: Tensor, seen_BS: Tensor) -> Tensor:
        """bool (B, G, R, S), Quest's pages: sum over channels of max(q min k, q max k)."""
        size, columns = self.method.page, key_BGSD.shape[2]
        extra = -columns % size
        seen = pad(seen_BS, (0, extra)).unflatten(1, (-1, size))[:, None, ..., None]
        pages = pad(key_BGSD, (0, 0, 0, extra)).unflatten(2, (-1, size))
        high = pages.masked_fill(~seen, -torch.inf).amax(3)
        low = pages.masked_fill(~seen, torch.inf).amin(3)
        filled = seen[:, :, :, :, 0].any(-1)
        high, low = (part.masked_fill(~filled[..., None], 0.0) for part in (high, low))
        bound = query_BGRD.relu() @ high.transpose(2, 3) - (-query_BGRD).relu() @ low.transpose(
            2, 3
        )
        bound = bound.masked_fill(~filled[:, :, None], -torch.inf)
        count = -(-self.method.token_budget // size)
        best = bound.argsort(dim=-1, descending=True, stable=True)[..., :count]
        chosen = torch.zeros_like(bound, dtype=torch.bool).scatter_(-1, best, True)
        return chosen.repeat_interleave(size, -1)[..., :columns]


def _rounded(key: Tensor, bits: int) -> Tensor:
    """Each token's channels on 2^bits levels between its least and its largest one."""
    low, high = key.amin(-1, keepdim=True), key.amax(-1, keepdim=True)
    step = (high - low).clamp(min=1e-9) / (2**bits - 1)
    return ((key - low) / step).round() * step + low
