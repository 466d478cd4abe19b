"""NSA, native sparse attention (arXiv 2502.11089, eqs. 5-12).

Shape suffixes: B rows, H heads, G KV heads, L queries, S columns, K compressed entries, W tokens of
a compressed entry, N blocks, D head size, M model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sf.attention.blocks.attend import attend, blocks_within, seen_in_blocks
from sf.attention.blocks.replace import BlockAttention, Forward
from sf.attention.decoder_hooks import find_decoder
from sf.errors import ConfigError, UnsupportedModelError

__all__ = ["NsaAttention", "Weights", "attach"]

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


def attach(model: nn.Module, attention: NsaAttention) -> None:
    """Add newly initialised weights to every attention module of the decoder.

    Raises:
        UnsupportedModelError: modules without the projections that determine the sizes.
    """
    _, decoder = find_decoder(model)
    for layer in decoder.get_submodule("layers").children():
        module: Any = layer.self_attn
        if not all(hasattr(module, name) for name in ("k_proj", "head_dim", "config")):
            rule = "NSA needs to know its head size and projections"
            raise UnsupportedModelError("model", type(module).__name__, rule)
        config, like = module.config, module.k_proj.weight
        sizes = (config.hidden_size, config.num_attention_heads, module.head_dim)
        weights = Weights(*sizes, attention.compress_block)
        module.add_module(NAME, weights.to(like.device, like.dtype))


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
        if not all(hasattr(module, NAME) for module in modules):
            rule = "has no NSA weights: the method needs training"
            raise ConfigError("model", type(modules[0]).__name__, rule, "train it: objective nsa")
        trained = modules[0].nsa.compress_key.place.shape[0]
        if trained != self.compress_block:
            rule = f"the weights were trained with {trained}"
            raise ConfigError("compress_block", self.compress_block, rule)

    def gates(self, module: Any, hidden_BLM: Tensor) -> Tensor:
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
        compressed, mass = self.compressed(query_BHLD, keys, values, position, scaling)
        count = -(-key_BGSD.shape[2] // size)
        chosen = self.choose(mass, position, count)
        near = blocks_within(position, size, count, self.window).expand_as(chosen)
        given = query_BHLD, key_BGSD, value_BGSD, position
        selected = attend(*given, chosen, size, scaling)
        window = attend(*given, near, size, scaling, self.window)
        forward.count(module.layer_idx, self.read(chosen, position, keys.shape[2]))
        gate = gates[..., None]
        out: Tensor = gate[0] * compressed + gate[1] * selected + gate[2] * window
        return out.to(query_BHLD.dtype)

    def compressed(
        self,
        query_BHLD: Tensor,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        position_BL: Tensor,
        scaling: float,
    ) -> tuple[Tensor, Tensor]:
        """The first branch, 0 before the first completed window, and its attention by group.

        Returns:
            (B, H, L, D), and (B, G, L, K), summed over a group's heads, without gradient.
        """
        share, entries = query_BHLD.shape[1] // key_BGKD.shape[1], key_BGKD.shape[2]
        key, value = (part.repeat_interleave(share, 1) for part in (key_BGKD, value_BGKD))
        end = torch.arange(entries, device=key.device) * self.compress_stride
        end = end + self.compress_block - 1
        exact = torch.promote_types(query_BHLD.dtype, torch.float32)
        outs, masses = [], []
        for at in range(0, query_BHLD.shape[2], QUERIES_AT_ONCE):
            queries = slice(at, at + QUERIES_AT_ONCE)
            score = (query_BHLD[:, :, queries] @ key.transpose(2, 3)).to(exact) * scaling
            seen = end <= position_BL[:, None, queries, None]
            score = score.masked_fill(~seen, torch.finfo(exact).min)
            weight = score.softmax(-1) * seen
            outs.append(weight.to(value.dtype) @ value)
            masses.append(weight.detach().unflatten(1, (-1, share)).sum(2))
        return torch.cat(outs, 2), torch.cat(masses, 2)

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
        score = score.masked_fill(index == own, torch.inf).masked_fill(index > own, -torch.inf)
        wanted = self._wanted(position_BL, mass_BGLK.shape[3])
        best = score.topk(min(int(wanted.max()), count), dim=-1).indices
        ranked = (torch.arange(best.shape[-1], device=device) < wanted).expand_as(best)
        chosen = torch.zeros_like(score, dtype=torch.bool).scatter(3, best, ranked)
        return chosen & (index <= own)

    def _wanted(self, position_BL: Tensor, entries: int) -> Tensor:
        """int64 (B, 1, L, 1), number of selected blocks, at least three if the number is fixed."""
        size = self.select_block
        if not self.token_ratio:
            return self.most(self.top_n, position_BL, size).clamp(min=3)
        own = position_BL % size + 1
        near = ((position_BL + 1).clamp(max=self.window) - own).clamp(min=0)
        return self.most(0, position_BL, size, near + self._ended(position_BL, entries))

    def _ended(self, position_BL: Tensor, entries: int) -> Tensor:
        """int64 (B, L), number of compressed entries that a query sees."""
        ended = (position_BL - self.compress_block + 1) // self.compress_stride + 1
        return ended.clamp(min=0, max=entries)

    def read(self, chosen_BGLN: Tensor, position_BL: Tensor, entries: int) -> Tensor:
        """int64 (B, G, L), number of entries that a query reads: tokens and compressed entries."""
        count = chosen_BGLN.shape[3]
        whole = seen_in_blocks(position_BL, self.select_block, count, None)
        near = seen_in_blocks(position_BL, self.select_block, count, self.window)
        tokens = torch.where(chosen_BGLN, whole, near).sum(-1)
        return tokens + self._ended(position_BL, entries)[:, None]
