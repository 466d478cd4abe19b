"""Keys and values of every layer in buffers whose addresses and shapes stay as they are.

A layer's buffer holds what its prefill kept, then room for the tokens to come. Attention always
reads the whole buffer; a mask says which entries there are. Layers keep different numbers of
tokens, so their buffers have different widths; a token is written at the same distance from each
layer's first free entry.

Shape suffixes: J layers, B rows, G KV heads, W entries of a layer after the prefill (widest row),
N room for further tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sf.attention.cache import PrunedLayer
from sf.errors import ConfigError

__all__ = ["DecodeCache"]

# A mask row of a multiple of this many entries is read in whole words by every attention kernel.
_ALIGN = 8


class DecodeCache:
    """Fixed buffers filled from a transformers cache, which is emptied layer by layer.

    Args:
        cache: after a prefill, of `PrunedLayer`s or of layers that hold every column.
        valid_BL: bool (B, L), False on padding of the logical columns; read for layers that are not
            pruned. None: no padding.
        room: N, at least 1.
        repeat: each row this many times, next to each other.

    Attributes:
        keys, values: per layer (B, G, W + N, D).
        masks: per layer bool (B, 1, 1, W + N), True where the newest token may look.
        at: int64 (1,), tokens written so far.

    Raises:
        ConfigError: a layer holds no plain keys and values.
    """

    def __init__(self, cache: Any, valid_BL: Tensor | None, room: int, repeat: int = 1) -> None:
        if room < 1 or repeat < 1:
            raise ConfigError("room, repeat", (room, repeat), "both are at least 1")
        self.room, self.repeat = room, repeat
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        real: list[Tensor] = []
        for layer in cache.layers:
            key, value, entries = _contents(layer, valid_BL)
            self.keys.append(self._buffer(key))
            self.values.append(self._buffer(value))
            real.append(entries.repeat_interleave(repeat, dim=0))
            layer.keys = layer.values = None
            if isinstance(layer, PrunedLayer):
                layer.reset()
            del key, value
        self._fill_masks(real)

    def _buffer(self, part_BGWD: Tensor) -> Tensor:
        batch, groups, width, size = part_BGWD.shape
        total = width + self.room
        total += -total % _ALIGN
        buffer = part_BGWD.new_empty(batch, self.repeat, groups, total, size)
        buffer[..., :width, :] = part_BGWD[:, None]
        # Masked entries are read all the same, and 0 x NaN would be NaN.
        buffer[..., width:, :] = 0.0
        return buffer.flatten(0, 1)

    def _fill_masks(self, real: list[Tensor]) -> None:
        """All layers' masks in one tensor, so that one write a token serves them all."""
        device, batch = real[0].device, real[0].shape[0]
        widths = [part.shape[1] for part in real]
        totals = [key.shape[2] for key in self.keys]
        self._mask = torch.zeros(batch * sum(totals), dtype=torch.bool, device=device)
        views = [
            part.view(batch, total)
            for part, total in zip(
                self._mask.split([batch * total for total in totals]), totals, strict=True
            )
        ]
        first = []
        start = 0
        for view, part, width, total in zip(views, real, widths, totals, strict=True):
            view[:, :width] = part
            first += [start + row * total + width for row in range(batch)]
            start += batch * total
        self.masks = [view[:, None, None] for view in views]
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self._first_entry_J = torch.tensor(widths, device=device)
        self._first_mask_JB = torch.tensor(first, device=device)
        self._entry_J = torch.zeros_like(self._first_entry_J)
        self._tails = [view[:, width:] for view, width in zip(views, widths, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, room included."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def open_entry(self) -> None:
        """Make the next entry of every layer visible; no wait for the device."""
        torch.add(self._first_entry_J, self.at, out=self._entry_J)
        self._mask.index_fill_(0, self._first_mask_JB + self.at, True)

    def close_entry(self) -> None:
        """The newest token has been written in every layer."""
        self.at.add_(1)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token's (B, G, 1, D) into the open entry; what transformers' layers call."""
        entry = self._entry_J[layer_idx : layer_idx + 1]
        key, value = self.keys[layer_idx], self.values[layer_idx]
        key.index_copy_(2, entry, key_states)
        value.index_copy_(2, entry, value_states)
        return key, value

    def rewind(self) -> None:
        """Forget every token written since the prefill."""
        self.at.zero_()
        for tail in self._tails:
            tail.fill_(False)


def _contents(layer: Any, valid_BL: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values (B, G, W, D) and which entries of them are real, bool (B, W)."""
    key, value = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(key, Tensor) or not isinstance(value, Tensor) or key.ndim != 4:
        raise ConfigError(
            "past_key_values",
            type(layer).__name__,
            "the decode loop reads layers with plain keys and values",
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
