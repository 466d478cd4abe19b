"""A layer's cache after pruning: physical entries are fewer than the logical length.

Shape suffixes: B rows, G KV heads, W kept prompt entries (widest row), T entries after the prompt,
D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from sf.errors import ConfigError

__all__ = ["PrunedLayer", "prune_in_place"]

_FIRST_RESERVE = 64


class PrunedLayer(CacheLayerMixin):
    """Stores the kept prompt tokens of one layer and all later tokens.

    `get_seq_length` is logical: transformers slices inputs, sizes masks and counts positions with
    it. `keys` and `values` are physical: (B, G, W + T, D) views into buffers that grow in place.
    Rows that kept fewer tokens are padded on the left; `prompt_valid` marks their entries. Entry
    W + t is logical column P + t for every row.

    `crop` removes entries after the prompt, and the prompt's last token, which every selection
    keeps: assisted decoding lets an assistant read it again. Earlier tokens it does not remove, for
    a token read again is kept in every layer.
    """

    is_croppable = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self._clear()

    def _clear(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = False
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None
        self.prompt_width = 0
        self.kept_width = 0
        self.appended = 0
        self.prompt_valid: Tensor | None = None
        self._prompt_end: Tensor | None = None
        self.active = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Return a prompt unchanged (`commit` follows), or append new entries.

        Returns:
            keys and values to attend to, physical.
        """
        if not self.active:
            raise ConfigError(
                "past_key_values",
                "a pruned cache",
                "it can only be continued inside sparsify(...) with a policy that drops tokens",
                "stay in the context, or keep the whole KV with whole_kv=True",
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        return self._append(key_states, value_states)

    def commit(
        self,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        prompt_width: int,
        appended: int,
        prompt_valid_BW: Tensor | None,
        prompt_end_B: Tensor | None = None,
    ) -> None:
        """Store the kept entries of a prefill.

        Args:
            key_BGKD, value_BGKD: kept entries, left-padded, the last `appended` after the prompt.
            prompt_width: logical columns of the prompt.
            appended: completion tokens that were part of the same forward.
            prompt_valid_BW: False on padding entries; None when all rows kept equally many.
            prompt_end_B: False where the prompt's last column is padding; None: nowhere.
        """
        self._key_buffer, self._value_buffer = key_BGKD, value_BGKD
        self.keys, self.values = key_BGKD, value_BGKD
        self.prompt_width, self.appended = prompt_width, appended
        self.kept_width = key_BGKD.shape[-2] - appended
        self.prompt_valid = prompt_valid_BW
        self._prompt_end = (
            torch.ones(key_BGKD.shape[0], dtype=torch.bool)
            if prompt_end_B is None
            else prompt_end_B
        )
        self.is_initialized = True

    def _append(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        used = self.kept_width + self.appended
        total = used + key_states.shape[-2]
        self._key_buffer = self._grown(self._key_buffer, used, total)
        self._value_buffer = self._grown(self._value_buffer, used, total)
        self._key_buffer[:, :, used:total] = key_states
        self._value_buffer[:, :, used:total] = value_states
        self.appended = total - self.kept_width
        return self._show(total)

    def _grown(self, buffer: Tensor | None, used: int, total: int) -> Tensor:
        """The buffer, or a larger copy: what follows the prompt doubles, the prompt does not."""
        assert buffer is not None
        if total <= buffer.shape[-2] and not buffer.requires_grad:
            return buffer
        capacity = self.kept_width + max(_FIRST_RESERVE, 2 * (total - self.kept_width))
        larger = buffer.new_empty(*buffer.shape[:2], capacity, buffer.shape[-1])
        larger[:, :, :used] = buffer[:, :, :used]
        return larger

    def _show(self, total: int) -> tuple[Tensor, Tensor]:
        assert self._key_buffer is not None
        assert self._value_buffer is not None
        self.keys = self._key_buffer[:, :, :total]
        self.values = self._value_buffer[:, :, :total]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.prompt_width + self.appended if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    @property
    def nbytes(self) -> int:
        """Bytes of K and V entries in use, without reserved space."""
        if self.keys is None or self.values is None:
            return 0
        return sum(part.numel() * part.element_size() for part in (self.keys, self.values))

    def reset(self) -> None:
        self._clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` entries.

        Raises:
            ConfigError: the count is positive, or reaches into the prompt beyond its last token.
        """
        most = self.appended + (self._prompt_end is not None)
        if tokens_to_remove > 0 or -tokens_to_remove > most:
            raise ConfigError(
                "tokens_to_remove",
                tokens_to_remove,
                f"a pruned cache can drop its last {most} entries, given as a negative",
                "start from a new cache",
            )
        self.appended += tokens_to_remove
        if self.appended < 0:
            self.appended = 0
            self._crop_prompt()
        if self.is_initialized:
            self._show(self.kept_width + self.appended)

    def _crop_prompt(self) -> None:
        """Remove the prompt's last column: an entry of each row in which it is not padding."""
        assert self.keys is not None
        assert self._prompt_end is not None
        end, self._prompt_end = self._prompt_end, None  # the column of the entry before is unknown
        self.prompt_width -= 1
        if bool(end.all()):
            self.kept_width -= 1
            if self.prompt_valid is not None:
                self.prompt_valid = self.prompt_valid[:, :-1]
            return
        if self.prompt_valid is None:
            shape = self.keys.shape[0], self.kept_width
            self.prompt_valid = torch.ones(shape, dtype=torch.bool, device=self.keys.device)
        last = self.prompt_valid[:, -1:] & ~end.to(self.prompt_valid.device)[:, None]
        self.prompt_valid = torch.cat([self.prompt_valid[:, :-1], last], dim=-1)

    def _take_rows(self, rows: Tensor) -> None:
        """Replace the rows by those at `rows`, including reserved space."""
        if not self.is_initialized:
            return
        total = self.kept_width + self.appended
        moved = []
        for buffer in (self._key_buffer, self._value_buffer):
            assert buffer is not None
            index = rows.to(buffer.device)
            fresh = buffer.new_empty(index.shape[0], *buffer.shape[1:])
            fresh[:, :, :total] = buffer[:, :, :total].index_select(0, index)
            moved.append(fresh)
        self._key_buffer, self._value_buffer = moved
        if self.prompt_valid is not None:
            self.prompt_valid = self.prompt_valid[rows.to(self.prompt_valid.device)]
        if self._prompt_end is not None:
            self._prompt_end = self._prompt_end[rows.to(self._prompt_end.device)]
        self._show(total)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._take_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.keys is not None:
            rows = torch.arange(self.keys.shape[0], device=self.keys.device)
            self._take_rows(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.keys is not None:
            rows = torch.arange(self.keys.shape[0], device=indices.device)
            self._take_rows(rows[indices])

    def offload(self) -> None:
        raise ConfigError("past_key_values", "offloaded", "a pruned cache cannot leave its device")

    prefetch = offload


def prune_in_place(cache: Cache | None, num_layers: int) -> Cache:
    """An empty dynamic cache's layers become pruned layers; the cache stays the same object.

    Raises:
        ConfigError: the cache is static, quantised, offloaded or has sliding layers.
    """
    if cache is None:
        cache = DynamicCache()
    if (
        not isinstance(cache, DynamicCache)
        or cache.offloading
        or any(type(layer) not in (DynamicLayer, PrunedLayer) for layer in cache.layers)
    ):
        raise ConfigError(
            "past_key_values",
            type(cache).__name__,
            "pruning needs a plain DynamicCache of full-attention layers",
            "drop cache_implementation, or set whole_kv=True",
        )
    cache.layers = [PrunedLayer() for _ in range(num_layers)]
    cache.layer_class_to_replicate = None
    return cache
