"""CUDA: fused probe scores, variable-length flash attention on packed tokens, split decoding.

If a kernel does not apply (float64 or float32 inputs, gradients through decoding, several new
tokens at once, dropout without flash-attn), PyTorch's attention computes the same result.

Shape suffixes: see `base` and `packed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from sf.attention.backends.named_sdpa import HALF, attend, runs_cudnn, runs_flash
from sf.attention.backends.packed import (
    Packing,
    attend_planned,
    attend_rows,
    attend_uniform,
    planned_length,
)
from sf.attention.backends.sdpa import SdpaBackend
from sf.attention.kernels.decode import decode_attention
from sf.attention.kernels.kept_tokens import gather_ragged, gather_tokens, spread_tokens
from sf.attention.kernels.probe_scores import probe_mass

__all__ = ["CudaBackend"]

_FUSED = (*HALF, torch.float32)
# The kernels' largest head size; Qwen2 and Qwen2.5 have 128.
_LARGEST_HEAD = 256
# From this many tokens a row, cuDNN's plan for a length is repaid within a few prompts.
_LEAST_PLANNED = 8192
# For shorter caches, launching the two split kernels takes longer than reading the cache.
_LEAST_ENTRIES = 1024


@dataclass(frozen=True)
class CudaBackend(SdpaBackend):
    """Device kernels if they apply, else `SdpaBackend`.

    Attributes:
        ragged: attention for rows of unequal length. "packed" is one variable-length flash call
            (flash-attn if installed, else PyTorch's); "rows" is one SDPA call per row.
        uniform: attention for rows of equal length, in one SDPA call. "flash" supports any length
            directly. "cudnn" pads to multiples of 512 tokens; it builds a plan at the first use of
            each such length in a process. "auto" is cuDNN for rows of at least 8,192 tokens where
            it runs, without gradients and dropout, and flash otherwise.
        fuses: see `Backend`.

    Measured on an H100 (28 heads, 4 KV heads, head size 128, bfloat16): cuDNN takes 3.2 instead of
    5.8 ms for 16,384 kept tokens and 11.9 instead of 21.2 ms for 32,768; a plan takes 44 ms, which
    18 and 5 layers repay. At 3,900 tokens cuDNN gained nothing. Between, the gain should fall with
    the square of the length, to 0.6 ms at 8,192 tokens (computed, not measured). PyTorch's flash
    kernel was written for the A100, so "auto" asks for Hopper. With gradients "auto" keeps flash:
    cuDNN's backward is not measured.
    """

    ragged: Literal["packed", "rows"] = "packed"
    uniform: Literal["auto", "flash", "cudnn"] = "auto"
    fuses: bool = True

    def probe_mass(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        column_BP: Tensor,
        present_BP: Tensor,
        valid_BL: Tensor,
        scaling: float,
    ) -> Tensor:
        parts = (query_BHLD, key_BGLD, column_BP, present_BP, valid_BL, scaling)
        fits = query_BHLD.shape[-1] <= _LARGEST_HEAD and query_BHLD.dtype in _FUSED
        return probe_mass(*parts) if fits else super().probe_mass(*parts)

    def prefill(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        value_BGLD: Tensor,
        index_BW: Tensor,
        lengths: list[int],
        scaling: float,
        dropout: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = query_BHLD, key_BGLD, value_BGLD
        packing = Packing(index_BW, lengths, query_BHLD.shape[2])
        if packing.width > 0 and not _records_gradient(*parts):
            prefill = self._prefill_uniform if packing.uniform else self._prefill_ragged
            return prefill(parts, packing, scaling, dropout)
        query_THD = packing.take(query_BHLD)
        # The cache needs left-padded rows; without padding, the packed rows serve.
        key_BWGD, value_BWGD = (packing.take_padded(part) for part in (key_BGLD, value_BGLD))
        key_TGD, value_TGD = key_BWGD.flatten(0, 1), value_BWGD.flatten(0, 1)
        if packing.uniform:
            # "auto" is flash here; see the class.
            run: Any = attend_planned if self.uniform == "cudnn" else attend_uniform
        else:
            key_TGD, value_TGD = (
                part.index_select(0, packing.slot_T) for part in (key_TGD, value_TGD)
            )
            run = self._attend_ragged(query_THD, dropout)
        out_THD = run(query_THD, key_TGD, value_TGD, packing, scaling, dropout)
        return packing.spread(out_THD), key_BWGD.transpose(1, 2), value_BWGD.transpose(1, 2)

    def _prefill_uniform(
        self, parts: tuple[Tensor, Tensor, Tensor], packing: Packing, scaling: float, dropout: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`prefill` of rows of equal length, without a gradient.

        The room behind a row reaches the next planned length. The causal mask hides it from the
        row's queries, and its output is not read.
        """
        width = packing.width
        planned = self._plans(parts[0], width, dropout)
        room = planned_length(width) if planned else width
        *parts_BRHD, slot_BL = gather_tokens(*parts, packing.index_BW, room)
        query, key, value = (part.transpose(1, 2) for part in parts_BRHD)
        out_BHRD = attend(query, key, value, scaling, causal=True, dropout=dropout, plans=planned)
        out_BLHD = spread_tokens(out_BHRD.transpose(1, 2), slot_BL)
        return out_BLHD, key[:, :, :width], value[:, :, :width]

    def _prefill_ragged(
        self, parts: tuple[Tensor, Tensor, Tensor], packing: Packing, scaling: float, dropout: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`prefill` of rows of unequal length, without a gradient."""
        parts_THD, kept_BWGD, slot_BL = gather_ragged(
            *parts, packing.index_BW, packing.ends_C, sum(packing.lengths)
        )
        run = self._attend_ragged(parts_THD[0], dropout)
        out_THD = run(*parts_THD, packing, scaling, dropout)
        # All rows share the packed buffer.
        out_BLHD = spread_tokens(out_THD.expand(len(packing.lengths), -1, -1, -1), slot_BL)
        key_BWGD, value_BWGD = kept_BWGD
        return out_BLHD, key_BWGD.transpose(1, 2), value_BWGD.transpose(1, 2)

    def _attend_ragged(self, query_THD: Tensor, dropout: float) -> Any:
        """The causal attention within rows of unequal length, differentiable."""
        return attend_packed if self._packs(query_THD, dropout) else attend_rows

    def _plans(self, query_BHLD: Tensor, width: int, dropout: float) -> bool:
        """Whether cuDNN attends within rows of `width` tokens, without a gradient."""
        if self.uniform != "auto":
            return self.uniform == "cudnn"
        return width >= _LEAST_PLANNED and dropout == 0 and runs_cudnn(query_BHLD)

    def _packs(self, query_THD: Tensor, dropout: float) -> bool:
        size = query_THD.shape[-1]
        return (
            self.ragged == "packed"
            and query_THD.dtype in HALF
            and size % 8 == 0
            and size <= _LARGEST_HEAD
            and query_THD.shape[0] > 0
            and runs_flash(query_THD.device)
            and (dropout == 0 or _flash_attn() is not None)
        )

    def decode(
        self,
        query_BHND: Tensor,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        if (
            query_BHND.shape[2] != 1
            or key_BGKD.shape[2] < _LEAST_ENTRIES
            or query_BHND.shape[-1] > _LARGEST_HEAD
            or query_BHND.dtype not in _FUSED
            or _records_gradient(query_BHND, key_BGKD, value_BGKD)
        ):
            return super().decode(query_BHND, key_BGKD, value_BGKD, mask, scaling)
        mask_BK = None if mask is None else mask[:, 0, 0]
        return decode_attention(query_BHND[:, :, 0], key_BGKD, value_BGKD, mask_BK, scaling)[
            :, None
        ]


def _records_gradient(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def attend_packed(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    packing: Packing,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Causal flash attention within each row, in a single call; (T, H, D), differentiable.

    Needs float16 or bfloat16 and CUDA compute capability 8.0 or more. Dropout needs flash-attn.
    """
    longest = max(packing.lengths)
    places = (packing.ends_C, packing.ends_C, longest, longest)
    flash = _flash_attn()
    if flash is not None:
        out: Tensor = flash(
            query_THD,
            key_TGD,
            value_TGD,
            *places,
            dropout_p=dropout,
            softmax_scale=scaling,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out
    varlen, options = _torch_varlen()
    out = varlen(
        query_THD, key_TGD, value_TGD, *places, scale=scaling, window_size=(-1, 0), **options
    )
    return out


@lru_cache
def _flash_attn() -> Any:
    """flash-attn's variable-length function, or None if the package is not installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ModuleNotFoundError:
        return None
    return flash_attn_varlen_func


@lru_cache
def _torch_varlen() -> tuple[Any, dict[str, bool]]:
    """PyTorch's variable-length attention, and its arguments for grouped queries."""
    from torch.nn.attention.varlen import varlen_attn

    # The option is newer than the function; earlier versions accept grouped heads directly.
    grouped = "enable_gqa" in signature(varlen_attn).parameters
    return varlen_attn, {"enable_gqa": True} if grouped else {}
