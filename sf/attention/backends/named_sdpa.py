"""PyTorch's scaled_dot_product_attention with kernels that need no plan per shape.

On Hopper, PyTorch prefers cuDNN for half precision. cuDNN builds a plan for every exact shape,
which takes 44 ms on an H100. With top-p, every layer has a different token count, and a growing
cache a different length at each token, so that choice would cost seconds per prompt. Here the
kernel is selected explicitly: flash, then memory-efficient, then math. `plans=True` selects cuDNN;
its caller must bound the shapes.

Shape suffixes: see `base`; Q queries, K keys.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["HALF", "attend", "runs_cudnn", "runs_flash"]

HALF = (torch.float16, torch.bfloat16)
_LARGEST_FLASH_HEAD = 256
_LARGEST_CUDNN_HEAD = 128
_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_WITH_PLANS = [SDPBackend.CUDNN_ATTENTION, *_WITHOUT_PLANS]


def attend(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    scaling: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    plans: bool = False,
) -> Tensor:
    """Attention with grouped queries; (B, H, Q, D), differentiable.

    Args:
        mask: bool, broadcastable to (B, H, Q, K), True where a query may attend.
        causal: use a causal mask instead of `mask`.
        plans: prefer cuDNN, for lengths from a small set.
    """
    grouped = query_BHQD.shape[1] != key_BGKD.shape[1]
    if grouped and not _takes_groups(query_BHQD, mask):
        repeats = query_BHQD.shape[1] // key_BGKD.shape[1]
        key_BGKD, value_BGKD = (
            part.repeat_interleave(repeats, dim=1) for part in (key_BGKD, value_BGKD)
        )
        grouped = False
    with _kernels(query_BHQD, plans):
        return scaled_dot_product_attention(
            query_BHQD,
            key_BGKD,
            value_BGKD,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal,
            scale=scaling,
            enable_gqa=grouped,
        )


def _kernels(query: Tensor, plans: bool) -> AbstractContextManager[object]:
    """The allowed kernels; cuDNN supports only half precision."""
    if query.device.type != "cuda" or query.dtype not in HALF:
        return nullcontext()
    names = _WITH_PLANS if plans else _WITHOUT_PLANS
    context: AbstractContextManager[object] = sdpa_kernel(names, set_priority=plans)
    return context


def _takes_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Whether a kernel shares KV heads without storing all scores.

    On CUDA only flash does, in half precision and without a mask; the math kernel would store heads
    x queries x keys.
    """
    if query.device.type != "cuda":
        return True
    return (
        mask is None
        and query.dtype in HALF
        and query.shape[-1] <= _LARGEST_FLASH_HEAD
        and runs_flash(query.device)
    )


@lru_cache
def runs_flash(device: torch.device) -> bool:
    """Whether PyTorch's flash kernels run on a device."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def runs_cudnn(query_BHQD: Tensor) -> bool:
    """Whether cuDNN attends to these queries, on a GPU where it is faster than flash (Hopper)."""
    size = query_BHQD.shape[-1]
    return (
        query_BHQD.dtype in HALF
        and size % 8 == 0
        and size <= _LARGEST_CUDNN_HEAD
        and torch.backends.cuda.cudnn_sdp_enabled()
        and _has_cudnn(query_BHQD.device)
    )


@lru_cache
def _has_cudnn(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.backends.cudnn.is_available()
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )
