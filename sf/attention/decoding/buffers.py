"""Keys and values of every layer in buffers with fixed addresses and shapes.

A row of a layer's buffer contains the entries that its prefill kept, without padding, followed by
space for its answer. Attention always reads the whole buffer; a mask marks the entries in use. Rows
and layers keep different numbers of tokens, so answers start at the first free entry of each.

Shape suffixes: J layers, S rows of the buffers, A rows in use (the first ones), B rows and W
entries of a layer after a prefill, C entries of a buffer's row, G KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sf.attention.cache import PrunedLayer
from sf.errors import ConfigError

__all__ = ["DecodeCache"]

# Attention kernels read mask rows in whole words if their length is a multiple of this.
_ALIGN = 8


class DecodeCache:
    """Fixed buffers that receive prefills, row by row.

    Args:
        slots: S. room: tokens after a row's prompt, at least 1.
        device: of the model.

    Attributes:
        keys, values: per layer (S, G, C, D).
        masks: per layer bool (A, 1, 1, C), True where the newest token may attend.
        at: int64 (S,), tokens of the answer written so far.
        moves: number of buffer reallocations; recorded addresses from before are stale.

    Raises:
        ConfigError: no slots or no room.
    """

    def __init__(self, slots: int, room: int, device: torch.device) -> None:
        if room < 1 or slots < 1:
            raise ConfigError("slots, room", (slots, room), "both are at least 1")
        self.slots, self.room, self.moves = slots, room, 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.at = torch.zeros(slots, dtype=torch.long, device=device)
        self._rows_S = torch.arange(slots, device=device)
        self._entries_JS = self.at[:0]
        self._active, self._widths = slots, list[int]()

    def put(
        self,
        slots: Sequence[int],
        cache: Any,
        valid_BL: Tensor | None,
        rows: Sequence[int],
        *,
        keep: bool = False,
    ) -> None:
        """Fill slots from rows of a transformers cache.

        Args:
            slots: target slot of each of `rows`.
            cache: after a prefill, with `PrunedLayer`s or layers that store every column.
            valid_BL: bool (B, L), False on padding of the logical columns; used for unpruned
                layers. None for no padding.
            rows: of the cache.
            keep: copy; by default the cache is emptied, layer by layer.

        Raises:
            ConfigError: a layer has no plain keys and values.
        """
        counts: list[list[int]] = []
        capacities = [key.shape[2] for key in self.keys]
        for at, layer in enumerate(cache.layers):
            key, value, real = _contents(layer, valid_BL)
            count_B = real.sum(-1).tolist()
            self._reserve(at, key, value, max(count_B[row] for row in rows))
            for slot, row in zip(slots, rows, strict=True):
                entries = slice(0, count_B[row])
                chosen = real[row] if count_B[row] < real.shape[1] else slice(None)
                self.keys[at][slot, :, entries] = key.detach()[row, :, chosen]
                self.values[at][slot, :, entries] = value.detach()[row, :, chosen]
            counts.append([count_B[row] for row in rows])
            if not keep:
                layer.keys = layer.values = None
                if isinstance(layer, PrunedLayer):
                    layer.reset()
            del key, value
        if capacities != [key.shape[2] for key in self.keys]:
            self._place_masks()
        device = self.at.device
        index = torch.tensor(list(slots), device=device)
        self._entries_JS[:, index] = torch.tensor(counts, device=device)
        self.at[index] = 0
        self._mark(slots)

    def move(self, to: int, source: int) -> None:
        """Copy a row to another slot."""
        for key, value, count in zip(
            self.keys, self.values, self._entries_JS[:, source].tolist(), strict=True
        ):
            end = count + int(self.at[source])
            key[to, :, :end] = key[source, :, :end]
            value[to, :, :end] = value[source, :, :end]
        self._entries_JS[:, to] = self._entries_JS[:, source]
        self.at[to] = self.at[source]
        self._mark([to])

    def _reserve(self, at: int, key_BGWD: Tensor, value_BGWD: Tensor, widest: int) -> None:
        """Make a layer's buffers wide enough for a prompt of `widest` entries."""
        # One extra entry, to which a row that has ended writes until it leaves.
        wanted = widest + self.room + 1
        wanted += -wanted % _ALIGN
        if at < len(self.keys) and self.keys[at].shape[2] >= wanted:
            return
        for held, part in ((self.keys, key_BGWD), (self.values, value_BGWD)):
            # Masked entries are read too, and 0 x NaN would be NaN.
            fresh = part.new_zeros(self.slots, part.shape[1], wanted, part.shape[3])
            if at < len(held):
                fresh[:, :, : held[at].shape[2]] = held[at]
                held[at] = fresh
            else:
                held.append(fresh)

    def _place_masks(self) -> None:
        """Put all layers' masks in one tensor, so that one write per token updates them all."""
        self.moves += 1
        device = self.at.device
        totals = [key.shape[2] for key in self.keys]
        self._mask = torch.zeros(self.slots * sum(totals), dtype=torch.bool, device=device)
        parts = self._mask.split([self.slots * total for total in totals])
        self._views = [
            part.view(self.slots, total) for part, total in zip(parts, totals, strict=True)
        ]
        starts = torch.tensor([0, *totals[:-1]], device=device).cumsum(0) * self.slots
        totals_J1 = torch.tensor(totals, device=device)[:, None]
        self._start_JS = starts[:, None] + self._rows_S * totals_J1
        if not self._entries_JS.numel():
            self._entries_JS = self.at.new_zeros(len(totals), self.slots)
        self._entry_JS = torch.zeros_like(self._entries_JS)
        self._mark(range(self.slots))
        self.narrow(self.slots)

    def _mark(self, slots: Sequence[int]) -> None:
        """Set the masks of slots from their contents."""
        index = torch.tensor(list(slots), device=self.at.device)
        for view, entries_S in zip(self._views, self._entries_JS, strict=True):
            place = torch.arange(view.shape[1], device=view.device)
            view[index] = place < (entries_S + self.at)[index, None]

    def narrow(self, active: int, *, trim: bool = False) -> None:
        """Read only the first rows.

        Args:
            active: A.
            trim: also limit the entries to the next token of any row (synchronises).
        """
        self._active = active
        self._widths = [view.shape[1] for view in self._views]
        if trim:
            used_J = (self._entries_JS[:, :active] + self.at[:active]).amax(1) + 1
            self._widths = (used_J + -used_J % _ALIGN).tolist()
        self.masks = [
            view[:active, None, None, :width]
            for view, width in zip(self._views, self._widths, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, including free space."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def open_entry(self) -> None:
        """Make the next entry of every row and layer visible, without synchronising."""
        torch.add(self._entries_JS, self.at, out=self._entry_JS)
        self._mask.index_fill_(0, (self._start_JS + self._entry_JS).flatten(), True)

    def close_entry(self, written_A: Tensor) -> None:
        """Finish the newest token, which has been written in every layer.

        Args:
            written_A: bool, False where the row had ended before.
        """
        self.at[: self._active].add_(written_A)

    def open_buffers(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (A, G, C, D) of a layer's rows in use, and their open entries (A,)."""
        active = slice(self._active)
        entry_A = self._entry_JS[layer, active]
        return self.keys[layer][active], self.values[layer][active], entry_A

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token's (A, G, 1, D) to the open entry; called by transformers' layers."""
        active, width = self._active, self._widths[layer_idx]
        place = (self._rows_S[:active], self._entry_JS[layer_idx, :active])
        read = []
        for held, states in ((self.keys, key_states), (self.values, value_states)):
            rows = held[layer_idx][:active]
            rows.transpose(1, 2).index_put_(place, states[:, :, 0])
            read.append(rows[:, :, :width])
        return read[0], read[1]

    def written(self) -> tuple[Tensor, Tensor]:
        """A copy of the state that changes with new tokens, for `rewind`."""
        return self.at.clone(), self._mask.clone()

    def rewind(self, to: tuple[Tensor, Tensor]) -> None:
        """Discard the tokens that were written since the call of `written`."""
        self.at.copy_(to[0])
        self._mask.copy_(to[1])


def _contents(layer: Any, valid_BL: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (B, G, W, D), and a mask of their valid entries, bool (B, W)."""
    key, value = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(key, Tensor) or not isinstance(value, Tensor) or key.ndim != 4:
        raise ConfigError(
            "past_key_values",
            type(layer).__name__,
            "the decode loop needs layers with plain keys and values",
            "use generate's default cache, or generate itself",
        )
    batch, width = key.shape[0], key.shape[2]
    real = torch.ones(batch, width, dtype=torch.bool, device=key.device)
    if isinstance(layer, PrunedLayer):
        if layer.prompt_valid is not None:
            real[:, : layer.kept_width] = layer.prompt_valid
    elif valid_BL is not None:
        if valid_BL.shape != real.shape:
            raise ConfigError(
                "past_key_values",
                type(layer).__name__,
                f"it holds {width} of {valid_BL.shape[1]} columns and no record of which",
                "use generate itself",
            )
        real &= valid_BL.to(key.device)
    return key, value, real
