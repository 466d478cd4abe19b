"""MInference (arXiv 2407.02490): per-head dynamic sparse patterns at prefill, dense decoding.

Shape suffixes: B rows, H heads, G KV heads, L tokens of a prompt, Q some of its queries, N blocks,
D head size.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sf.attention import Trace
from sf.attention.blocks import BlockAttention, Replacement
from sf.attention.blocks.replace import Forward
from sf.baselines.full import Full
from sf.baselines.method import Hyperparameter, Method, share_of

__all__ = ["PATTERNS", "MInference", "Patterns"]

PATTERNS = ("vertical_slash", "a_shape", "block_sparse")
# Mask elements (heads x queries x keys) that are made at once.
_MASK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class MInference(Method):
    """Each head reads a vertical-slash, A-shape or block-sparse part of the prompt.

    - vertical-slash (algorithm 2): the columns and the diagonals with most attention from the
      last 64 queries, 1 column to 6 diagonals as in the released settings (1000 and 6096). The
      first 30 columns and the nearest 100 diagonals come first, each for at most half of its part.
    - A-shape: the first tokens and the nearest ones, 1 to 4 (the paper's 1024 and 4096).
    - block-sparse (algorithm 3): for each block of 64 queries the blocks of 64 keys whose means
      attend most; none on prompts so short that the share is less than a block.

    Two things are ours. The paper's sizes are absolute, for prompts of 100k tokens, and would be
    dense on most benchmarks: here they follow the prompt's length. And the paper finds each head's
    pattern offline on one example; here it is the one that holds most attention of the last 64
    queries of the prompt itself (the paper's criterion, without a file of settings per model).

    Key-value cache and decoding are the model's own. The ratio is that of a selection of tokens
    with as many (query, key) pairs; estimating the patterns is not counted.

    Attributes:
        share: of the prompt's length that a query may read, in (0, 1]. The default is ours.
    """

    name: ClassVar[str] = "minference"
    text: ClassVar[str] = "per head, a vertical-slash, A-shape or block-sparse part at prefill"
    paper: ClassVar[str] = "2407.02490 algorithms 2 and 3 (sizes: ours)"
    counts: ClassVar[str] = "tokens whose dense attention reads as many pairs at prefill; KV whole"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("share", 0.25, dense=1.0)

    share: float = 0.25

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        if self.share == 1:
            return Full().apply(model)
        return Replacement(model, _Attention(self.share))


@dataclass(frozen=True)
class _Attention(BlockAttention):
    share: float

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
        batch, heads, length, _ = query_BHLD.shape
        repeat = heads // key_BGSD.shape[1]
        key, value = (part.repeat_interleave(repeat, 1) for part in (key_BGSD, value_BGSD))
        if not forward.prompt:
            forward.count(module.layer_idx, query_BHLD.new_zeros(batch, 1, length))
            column = torch.arange(key.shape[2], device=key.device)
            seen = column <= forward.place.position[:, None, :, None]
            return scaled_dot_product_attention(query_BHLD, key, value, seen, scale=scaling)
        out = torch.zeros_like(query_BHLD)
        read = torch.zeros(batch, heads, length, device=out.device)
        asked_BL = forward.valid[:, -length:].to(out.device)
        for row, asked in enumerate(asked_BL):
            count = int(asked.sum())
            if count:
                parts = query_BHLD[row][:, asked], key[row, :, :count], value[row, :, :count]
                out[row, :, asked], read[row, :, asked] = self._prompt(*parts, scaling)
        forward.count(module.layer_idx, read)
        return out

    def _prompt(
        self, query_HLD: Tensor, key_HLD: Tensor, value_HLD: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """(H, L, D) of one row, and (H, L) how many keys each query read."""
        heads, length = query_HLD.shape[:2]
        patterns = Patterns(query_HLD, key_HLD, scaling, self.share)
        kinds = patterns.best()
        out, read = [], []
        step = max(16, _MASK_ELEMENTS // (heads * length))
        for first in range(0, length, step):
            rows = torch.arange(first, min(first + step, length), device=key_HLD.device)
            mask_HQL = patterns.mask(rows, kinds)
            # Only the columns that some head reads take part.
            used = mask_HQL.any(0).any(0).nonzero()[:, 0]
            mask = mask_HQL[..., used]
            out.append(
                scaled_dot_product_attention(
                    query_HLD[None, :, rows],
                    key_HLD[None, :, used],
                    value_HLD[None, :, used],
                    mask[None],
                    scale=scaling,
                )[0]
            )
            read.append(mask.sum(-1).float())
        return torch.cat(out, 1), torch.cat(read, 1)


class Patterns:
    """The three patterns of every head for one prompt, (H, L, D) queries and keys.

    With eight tokens, one column (0) and two diagonals (0 and 3); and the A-shape of one first
    token and three near ones:

        1 . . . . . . .        1 . . . . . . .
        1 1 . . . . . .        1 1 . . . . . .
        1 . 1 . . . . .        1 1 1 . . . . .
        1 . . 1 . . . .        1 1 1 1 . . . .
        1 1 . . 1 . . .        1 . 1 1 1 . . .
    """

    def __init__(
        self,
        query_HLD: Tensor,
        key_HLD: Tensor,
        scaling: float,
        share: float,
        last: int = 64,
        block: int = 64,
    ) -> None:
        work = torch.promote_types(query_HLD.dtype, torch.float32)
        query_HLD, key_HLD = query_HLD.to(work), key_HLD.to(work)
        self.length, self.block = query_HLD.shape[1], block
        self.reads = max(1, math.ceil(share * self.length - 1e-9))
        self.last = torch.arange(max(0, self.length - last), self.length, device=key_HLD.device)
        score = query_HLD[:, self.last] @ key_HLD.transpose(1, 2) * scaling
        column = torch.arange(self.length, device=key_HLD.device)
        score.masked_fill_(column > self.last[:, None], -math.inf)
        self.weight_HQL = score.softmax(-1)
        columns = self.reads // 7
        self.vertical_HL = _largest(self.weight_HQL.sum(1), columns, min(30, columns // 2))
        diagonals = self.reads - columns
        self.slash_HL = _largest(self._diagonal_sums(), diagonals, min(100, max(1, diagonals // 2)))
        self.blocks_HNN = self._blocks(query_HLD, key_HLD, scaling, share)

    def _diagonal_sums(self) -> Tensor:
        """(H, L) attention at each distance between query and key."""
        distance = torch.arange(self.length, device=self.last.device)
        column_QL = self.last[:, None] - distance
        index = column_QL.clamp(min=0).expand(self.weight_HQL.shape[0], -1, -1)
        weight_HQL = self.weight_HQL.gather(2, index)
        return weight_HQL.masked_fill(column_QL < 0, 0.0).sum(1)

    def _blocks(self, query_HLD: Tensor, key_HLD: Tensor, scaling: float, share: float) -> Tensor:
        """bool (H, N, N), the blocks of keys that each block of queries reads."""
        mean_q, mean_k = (
            torch.stack([piece.mean(1) for piece in part.split(self.block, 1)], 1)
            for part in (query_HLD, key_HLD)
        )
        score = mean_q @ mean_k.transpose(1, 2) * scaling
        count = score.shape[-1]
        place = torch.arange(count, device=score.device)
        score = score.masked_fill(place > place[:, None], -math.inf).softmax(-1)
        return _largest(score, share_of(count, share), 0)

    def mask(self, rows_Q: Tensor, kinds_H: Tensor) -> Tensor:
        """bool (H, Q, L): what each head's queries read, causally; kinds are places in PATTERNS."""
        column = torch.arange(self.length, device=rows_Q.device)
        distance_QL = rows_Q[:, None] - column
        mask = torch.empty(len(kinds_H), *distance_QL.shape, dtype=torch.bool, device=rows_Q.device)
        for kind, name in enumerate(PATTERNS):
            heads = (kinds_H == kind).nonzero()[:, 0]
            if len(heads):
                mask[heads] = getattr(self, f"_{name}")(heads, rows_Q, distance_QL)
        return mask & (distance_QL >= 0)

    def _vertical_slash(self, heads: Tensor, rows_Q: Tensor, distance_QL: Tensor) -> Tensor:
        slash = self.slash_HL[heads][:, distance_QL.clamp(min=0)]
        return self.vertical_HL[heads][:, None] | slash

    def _a_shape(self, heads: Tensor, rows_Q: Tensor, distance_QL: Tensor) -> Tensor:
        first = self.reads // 5
        column = rows_Q[:, None] - distance_QL
        return ((column < first) | (distance_QL < self.reads - first)).expand(len(heads), -1, -1)

    def _block_sparse(self, heads: Tensor, rows_Q: Tensor, distance_QL: Tensor) -> Tensor:
        column = torch.arange(self.length, device=rows_Q.device) // self.block
        return self.blocks_HNN[heads][:, rows_Q // self.block][..., column]

    def best(self) -> Tensor:
        """int64 (H,): the pattern that holds most attention of the last queries."""
        heads = len(self.weight_HQL)
        held = []
        for kind in range(len(PATTERNS)):
            kinds = torch.full((heads,), kind, device=self.last.device)
            held.append((self.weight_HQL * self.mask(self.last, kinds)).sum((1, 2)))
        return torch.stack(held).argmax(0)


def _largest(score: Tensor, count: int, first: int) -> Tensor:
    """True at the `count` largest of the last dimension, the `first` leading ones before all."""
    score = score.clone()
    score[..., :first] = math.inf
    best = score.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, best, True)
