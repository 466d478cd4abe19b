"""NSA, native sparse attention (arXiv 2502.11089, eqs. 5-12).

Shape suffixes: B rows, H heads, G KV heads, L queries, S columns, K compressed entries, W tokens of
a compressed entry, N blocks, D head size, M model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sf.attention.blocks.attend import attend, blocks_within, seen_in_blocks
from sf.attention.blocks.replace import BlockAttention, Forward
from sf.errors import ConfigError

__all__ = [
    "BRANCHES",
    "QUERIES_AT_ONCE",
    "NsaAttention",
    "Weights",
    "attend_compressed",
    "gated",
    "largest_blocks",
    "near_beside_own",
    "tokens_read",
]

NAME = "nsa"
BRANCHES = 3
QUERIES_AT_ONCE = 1024


class Compress(nn.Module):
    """phi of eq. (7): a window's mean, plus an MLP of its tokens with positional embeddings."""

    def __init__(self, size: int, block: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(block, size))
        self.inner = nn.Linear(block * size, size)
        self.outer = nn.Linear(size, size)
        nn.init.normal_(self.inner.weight, std=(block * size) ** -0.5)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, part_BGSD: Tensor, stride: int) -> Tensor:
        """(B, G, K, D), one entry per complete window."""
        block = len(self.place)
        if part_BGSD.shape[2] < block:
            return part_BGSD[:, :, :0]
        window_BGKWD = part_BGSD.unfold(2, block, stride).transpose(-1, -2)
        inner = nn.functional.silu(self.inner((window_BGKWD + self.place).flatten(-2)))
        mixed: Tensor = window_BGKWD.mean(-2) + self.outer(inner)
        return mixed


class Weights(nn.Module):
    """The weights that NSA adds to an attention module, as `nsa`.

    They are initialised to the selected branch, with a small share of the two others and mean keys
    and values; if everything is selected, this is close to the pretrained attention.

    Args:
        hidden: of the model.
        heads: attention heads; each has a gate for each branch.
        size: of a head.
        block: tokens per compressed entry.
    """

    def __init__(self, hidden: int, heads: int, size: int, block: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, BRANCHES * heads)
        self.compress_key = Compress(size, block)
        self.compress_value = Compress(size, block)
        nn.init.zeros_(self.gate.weight)
        with torch.no_grad():
            self.gate.bias.copy_(torch.tensor([-3.0, 3.0, -3.0]).repeat_interleave(heads))

    def gates(self, hidden_BLM: Tensor) -> Tensor:
        """(3, B, H, L), each in (0, 1): compressed, selected, window."""
        gate: Tensor = self.gate(hidden_BLM).sigmoid()
        return gate.unflatten(-1, (BRANCHES, -1)).permute(2, 0, 3, 1)


def attend_compressed(
    query_BHLD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    end_K: Tensor,
    position_BL: Tensor,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """The first branch, 0 before the first completed entry, and its attention by group.

    Args:
        end_K: int64, the position of each entry's last token; a query sees entries that ended.

    Returns:
        (B, H, L, D), and (B, G, L, K), summed over a group's heads, without gradient.
    """
    share = query_BHLD.shape[1] // key_BGKD.shape[1]
    key, value = (part.repeat_interleave(share, 1) for part in (key_BGKD, value_BGKD))
    exact = torch.promote_types(query_BHLD.dtype, torch.float32)
    outs, masses = [], []
    for at in range(0, query_BHLD.shape[2], QUERIES_AT_ONCE):
        queries = slice(at, at + QUERIES_AT_ONCE)
        score = (query_BHLD[:, :, queries] @ key.transpose(2, 3)).to(exact) * scaling
        seen = end_K <= position_BL[:, None, queries, None]
        score = score.masked_fill(~seen, torch.finfo(exact).min)
        weight = score.softmax(-1) * seen
        outs.append(weight.to(value.dtype) @ value)
        masses.append(weight.detach().unflatten(1, (-1, share)).sum(2))
    return torch.cat(outs, 2), torch.cat(masses, 2)


def largest_blocks(score_BGLN: Tensor, own_B1L1: Tensor, wanted_B1L1: Tensor) -> Tensor:
    """bool (B, G, L, N), the blocks with the largest scores: a query's own first, none ahead.

    Args:
        score_BGLN: finite.
        own_B1L1: int64 (B, 1, L, 1), the block of each query.
        wanted_B1L1: int64 (B, 1, L, 1), number of blocks.
    """
    count, device = score_BGLN.shape[3], score_BGLN.device
    index = torch.arange(count, device=device)
    score = score_BGLN.masked_fill(index == own_B1L1, torch.inf)
    score = score.masked_fill(index > own_B1L1, -torch.inf)
    best = score.topk(min(int(wanted_B1L1.max()), count), dim=-1).indices
    ranked = (torch.arange(best.shape[-1], device=device) < wanted_B1L1).expand_as(best)
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter(3, best, ranked)
    return chosen & (index <= own_B1L1)


def gated(
    gates_3BHL: Tensor,
    compressed_BHLD: Tensor,
    given: tuple[Tensor, Tensor, Tensor, Tensor],
    chosen_BGLN: Tensor,
    size: int,
    window: int,
    scaling: float,
) -> Tensor:
    """The three branches under their gates, (B, H, L, D) in the queries' dtype: eq. (5).

    Args:
        given: queries, keys, values and the queries' positions, as of `attend`.
        chosen_BGLN: the selected blocks.
        size: tokens per block.
    """
    position, count = given[3], chosen_BGLN.shape[3]
    near = blocks_within(position, size, count, window).expand_as(chosen_BGLN)
    selected = attend(*given, chosen_BGLN, size, scaling)
    windowed = attend(*given, near, size, scaling, window)
    gate = gates_3BHL[..., None]
    out: Tensor = gate[0] * compressed_BHLD + gate[1] * selected + gate[2] * windowed
    return out.to(given[0].dtype)


def near_beside_own(position_BL: Tensor, size: int, window: int) -> Tensor:
    """int64 (B, L), tokens of a query's window before its own block."""
    own = position_BL % size + 1
    return ((position_BL + 1).clamp(max=window) - own).clamp(min=0)


def tokens_read(chosen_BGLN: Tensor, position_BL: Tensor, size: int, window: int) -> Tensor:
    """int64 (B, G, L), tokens that a query reads in chosen blocks or in its window."""
    count = chosen_BGLN.shape[3]
    whole = seen_in_blocks(position_BL, size, count, None)
    near = seen_in_blocks(position_BL, size, count, window)
    return torch.where(chosen_BGLN, whole, near).sum(-1)


@dataclass(frozen=True)
class NsaAttention(BlockAttention):
    """o = sum over the branches of gate * attention(q, K_branch, V_branch), eq. (5).

    Compressed (eq. 7): learnt entries over windows of `compress_block` tokens, one every
    `compress_stride` tokens; a query sees completed windows. Selected (eqs. 8-12): heads that share
    keys jointly choose the `top_n` blocks of `select_block` tokens with the largest compressed
    attention. The first block and the two that end at the query are always chosen or, with a token
    ratio, as many of them as it allows, starting with the query's own block. Window: the last
    `window` tokens. The gates (sigmoid) depend on the layer's input.

    Differences from the paper: the branches share the model's K and V (after RoPE), since the
    weights are post-trained rather than trained from scratch; in eq. (9), a compressed entry counts
    for a block once per stride that both cover.

    Attributes:
        top_n, compress_block, compress_stride, select_block, window: defaults as published.
    """

    weights: ClassVar[str] = NAME

    top_n: int = 16
    compress_block: int = 32
    compress_stride: int = 16
    select_block: int = 64
    window: int = 512

    def __post_init__(self) -> None:
        for name in ("compress_block", "select_block"):
            if getattr(self, name) % self.compress_stride:
                rule = f"must be a multiple of compress_stride {self.compress_stride}"
                raise ConfigError(name, getattr(self, name), rule)

    def check(self, modules: Sequence[Any]) -> None:
        super().check(modules)
        trained = modules[0].nsa.compress_key.place.shape[0]
        if trained != self.compress_block:
            rule = f"the weights were trained with {trained}"
            raise ConfigError("compress_block", self.compress_block, rule)

    def new_weights(self, hidden: int, heads: int, size: int) -> Weights:
        return Weights(hidden, heads, size, self.compress_block)

    def gates(self, module: Any, hidden_BLM: Tensor, forward: Forward) -> Tensor:
        gates: Tensor = module.nsa.gates(hidden_BLM)
        return gates

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
        assert gates is not None
        position, size = forward.place.position, self.select_block
        keys = module.nsa.compress_key(key_BGSD, self.compress_stride)
        values = module.nsa.compress_value(value_BGSD, self.compress_stride)
        end = torch.arange(keys.shape[2], device=keys.device) * self.compress_stride
        end = end + self.compress_block - 1
        compressed, mass = attend_compressed(query_BHLD, keys, values, end, position, scaling)
        chosen = self.choose(mass, position, -(-key_BGSD.shape[2] // size))
        forward.count(module.layer_idx, self.read(chosen, position, keys.shape[2]))
        given = query_BHLD, key_BGSD, value_BGSD, position
        return gated(gates, compressed, given, chosen, size, self.window, scaling)

    def choose(self, mass_BGLK: Tensor, position_BL: Tensor, count: int) -> Tensor:
        """bool (B, G, L, N), the selected blocks."""
        device, stride = mass_BGLK.device, self.compress_stride
        first = torch.arange(mass_BGLK.shape[3], device=device)[:, None] * stride
        block = torch.arange(count, device=device) * self.select_block
        end = torch.minimum(first + self.compress_block, block + self.select_block)
        shared = (end - torch.maximum(first, block)).clamp(min=0) // stride
        score = mass_BGLK @ shared.to(mass_BGLK.dtype)
        own = (position_BL // self.select_block)[:, None, :, None]
        index = torch.arange(count, device=device)
        most = torch.finfo(score.dtype).max
        score = score.masked_fill(index == 0, most / 2).masked_fill(index == own - 1, most)
        return largest_blocks(score, own, self._wanted(position_BL, mass_BGLK.shape[3]))

    def _wanted(self, position_BL: Tensor, entries: int) -> Tensor:
        """int64 (B, 1, L, 1), number of selected blocks, at least three if the number is fixed."""
        size = self.select_block
        if not self.token_ratio:
            return self.most(self.top_n, position_BL, size).clamp(min=3)
        near = near_beside_own(position_BL, size, self.window)
        return self.most(0, position_BL, size, near + self._ended(position_BL, entries))

    def _ended(self, position_BL: Tensor, entries: int) -> Tensor:
        """int64 (B, L), number of compressed entries that a query sees."""
        ended = (position_BL - self.compress_block + 1) // self.compress_stride + 1
        return ended.clamp(min=0, max=entries)

    def read(self, chosen_BGLN: Tensor, position_BL: Tensor, entries: int) -> Tensor:
        """int64 (B, G, L), number of entries that a query reads: tokens and compressed entries."""
        tokens = tokens_read(chosen_BGLN, position_BL, self.select_block, self.window)
        return tokens + self._ended(position_BL, entries)[:, None]
