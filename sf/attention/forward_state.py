"""One forward of the decoder: what its layers share.

Shape suffixes: B rows, P prompt columns, C columns after the prompt, L = P + C, W active columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache

from sf.attention.backends import Backend, backend_for
from sf.attention.cache import PrunedLayer
from sf.selection import Policy, Scores, visible_probes

__all__ = ["ForwardState", "Layout"]

Kind = Literal["dense", "prefill", "continue"]


@dataclass(frozen=True)
class Layout:
    """The active columns of a layer.

    Attributes:
        index: int64 (B, W), each row's active columns last, in order; others of the row before.
        count: int64 (B,), active columns of each row; `lengths` are the same numbers, on the host.
        full: every row keeps everything.
    """

    index: Tensor
    count: Tensor
    lengths: list[int]
    full: bool


@dataclass
class ForwardState:
    """Handed to every layer as a keyword argument, so that it survives gradient checkpointing.

    Attributes:
        kind: "dense" layers run the model's own implementation; "prefill" layers select and prune;
            "continue" layers append to a pruned cache and see all of it.
        valid: bool (B, P), False on padding of the prompt.
        tail_valid: bool (B, C) after the prompt, None when all are valid. In "continue" it covers
            everything since the prompt, the new tokens last.
        tail: C of this forward.
        cache: where "prefill" stores what it keeps; None without a cache.
        lean: skip projections of dropped tokens where the attention class is known.
        kept: layer -> bool (B, P). A layer that runs again (gradient checkpointing) finds its set.
    """

    kind: Kind
    policy: Policy
    valid: Tensor | None = None
    tail_valid: Tensor | None = None
    tail: int = 0
    cache: Cache | None = None
    lean: bool = False
    kept: dict[int, Tensor] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    _layout: tuple[int, Layout] | None = field(default=None, repr=False)
    _moved: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def _prompt(self) -> dict[str, Tensor]:
        """What selection reads besides queries and keys: the same in every layer."""
        assert self.valid is not None
        column, present = self.policy.probes.columns(self.valid)
        last = self.valid.long().cumsum(-1).argmax(-1, keepdim=True)
        return {
            "column": column,
            "present": present,
            "visible": visible_probes(column, present, self.valid.shape[1]),
            "num_probes": present.sum(-1),
            "last": torch.zeros_like(self.valid).scatter_(1, last, True),
        }

    @cached_property
    def _places(self) -> Tensor:
        """int64 (1, L), the columns' numbers."""
        assert self.valid is not None
        return torch.arange(self.valid.shape[1] + self.tail, device=self.valid.device)[None]

    @cached_property
    def _remembered(self) -> dict[Any, Any]:
        """What a policy computes once for all layers; see `Scores.once`."""
        return {}

    @cached_property
    def full_lengths(self) -> list[int]:
        """Valid columns of each row, prompt and tail."""
        assert self.valid is not None
        count = self.valid.sum(-1)
        if self.tail:
            count = count + (self.tail if self.tail_valid is None else self.tail_valid.sum(-1))
        return [int(n) for n in count.tolist()]

    def _at(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.device == device:
            return tensor
        if (name, device) not in self._moved:
            self._moved[name, device] = tensor.to(device)
        return self._moved[name, device]

    def choose(
        self, query_BHPD: Tensor, key_BGPD: Tensor, scaling: float, layer: int, backend: Backend
    ) -> Tensor:
        """The layer's kept prompt tokens, bool (B, P); made once, without a gradient."""
        if layer in self.kept:
            return self.kept[layer]
        assert self.valid is not None
        device = key_BGPD.device
        valid = self._at("valid", self.valid, device)
        prompt = {name: self._at(name, part, device) for name, part in self._prompt.items()}
        with torch.no_grad():
            if self.policy.scores_at(layer):
                parts = query_BHPD.detach(), key_BGPD.detach(), prompt["column"], prompt["present"]
                mass = backend.probe_mass(*parts, valid, scaling)
            else:
                mass = torch.zeros(valid.shape, device=device)
            scores = Scores(
                mass=mass,
                visible=prompt["visible"],
                num_probes=prompt["num_probes"],
                valid=valid,
                memory=self._remembered,
            )
            # The last prompt token predicts the first answer token.
            kept = (self.policy.keep(scores, layer) | prompt["last"]) & valid
        self.kept[layer] = kept
        return kept

    def layout(self, query_BHLD: Tensor, key_BGLD: Tensor, scaling: float, layer: int) -> Layout:
        """Select on the prompt's columns; the newest layer's layout is remembered."""
        if self.policy.keeps_all:
            return self._everything
        if self._layout is None or self._layout[0] != layer:
            assert self.valid is not None
            width = self.valid.shape[1]
            prompt = query_BHLD[:, :, :width], key_BGLD[:, :, :width]
            kept = self.choose(*prompt, scaling, layer, backend_for(key_BGLD.device))
            active = self.active(kept)
            order, count = _ordered(active, self._at("places", self._places, active.device))
            # The one wait for the device in a layer: its tensors' sizes follow from these numbers.
            lengths = [int(n) for n in count.tolist()]
            index = order[:, order.shape[1] - max(lengths) :]
            self._layout = layer, Layout(index, count, lengths, lengths == self.full_lengths)
        return self._layout[1]

    @cached_property
    def _everything(self) -> Layout:
        """All valid columns, for every layer alike."""
        assert self.valid is not None
        order, count = _ordered(self.active(self.valid), self._places)
        lengths = self.full_lengths
        return Layout(order[:, order.shape[1] - max(lengths) :], count, lengths, full=True)

    def probe_columns(self, device: torch.device) -> Tensor:
        """int64 (B, probes); rows with fewer probes repeat column 0."""
        return self._at("column", self._prompt["column"], device)

    def active(self, kept_BP: Tensor) -> Tensor:
        """bool (B, L): kept prompt tokens and every valid token after the prompt."""
        if not self.tail:
            return kept_BP
        if self.tail_valid is None:
            rest = kept_BP.new_ones(kept_BP.shape[0], self.tail)
        else:
            rest = self._at("tail", self.tail_valid, kept_BP.device)
        return torch.cat([kept_BP, rest], dim=-1)

    def cache_layer(self, layer: int) -> PrunedLayer | None:
        if self.cache is None:
            return None
        pruned = self.cache.layers[layer]
        assert isinstance(pruned, PrunedLayer)
        return pruned

    def open_cache(self, active: bool) -> None:
        """Let the cache's pruned layers be updated, or seal them."""
        for layer in self.cache.layers if self.cache is not None else []:
            if isinstance(layer, PrunedLayer):
                layer.active = active

    def continue_mask(self, layer: PrunedLayer, new: int) -> Tensor | None:
        """The entries of a pruned cache visible to `new` tokens, which it already contains.

        With two rows, three kept entries (the first row padded) and two new tokens:

            0 1 1 1 0        1 1 1 1 0
            0 1 1 1 1        1 1 1 1 1

        Returns:
            bool (B, 1, N, W + T), or None when everything may be seen.
        """
        if new == 1 and layer.prompt_valid is None and self.tail_valid is None:
            return None
        assert layer.keys is not None
        batch, device = layer.keys.shape[0], layer.keys.device
        prompt, tail = layer.prompt_valid, self.tail_valid
        if prompt is None:
            prompt = torch.ones(batch, layer.kept_width, dtype=torch.bool, device=device)
        if tail is None:
            tail = torch.ones(batch, layer.appended, dtype=torch.bool, device=device)
        else:
            tail = self._at("tail", tail, device)
        causal = torch.ones(new, layer.appended, dtype=torch.bool, device=device)
        causal = causal.tril(layer.appended - new)
        # A token that is itself padding still sees itself: no empty softmax.
        own = causal & ~causal.tril(layer.appended - new - 1)
        after = (tail[:, None, None] & causal) | own
        return torch.cat([prompt[:, None, None].expand(-1, -1, new, -1), after], dim=-1)


def _ordered(active_BL: Tensor, column_1L: Tensor) -> tuple[Tensor, Tensor]:
    """Columns with each row's active ones last, both parts ascending; and how many are active.

    Returns:
        int64 (B, L) and (B,). Nothing waits for the device: nonzero would, and a sort takes longer.
    """
    until_BL = active_BL.cumsum(-1)
    count_B1 = until_BL[:, -1:]
    shift_B1 = active_BL.shape[1] - 1 - count_B1
    rank_BL = torch.where(active_BL, until_BL + shift_B1, column_1L - until_BL)
    order_BL = torch.empty_like(rank_BL).scatter_(1, rank_BL, column_1L.expand_as(rank_BL))
    return order_BL, count_B1[:, 0]
