"""Projections of new tokens, with what a decoder layer puts around a matrix product.

For a single row, one launch reads every weight once, at the speed of memory: RMSNorm, several
matrices that read the same row (query, key and value), biases, a gate, and the residual. The norm
is linear up to one factor, which is applied to the product:

    sum_k W[n, k] (x[k] g[k]) / rms(x)

Several rows run the vendor's products, which at 8 rows on an H100 were no slower than a kernel of
ours; norm and gate take one launch each, biases and the residual none.

Shape suffixes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sf.attention.kernels.tiles import blocks, padded
from sf.errors import ConfigError

__all__ = ["LinearTile", "linear_tile", "project"]

_MOST_WEIGHTS = 3
# Elements per program of the gate.
_GATED = 1024
# From here on, rows are long enough to occupy a program with two outputs.
_LONG_INPUTS = 8192
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class LinearTile:
    """Tile sizes of a row's projection; `make gpu` compares some.

    Attributes:
        outputs, inputs: of one tile of a weight; powers of two.
        warps: per program.
    """

    outputs: int = 8
    inputs: int = 512
    warps: int = 4


def linear_tile(inputs: int, normed: bool, gated: bool) -> LinearTile:
    """The tile in use: the fastest one on an H100 for the shapes of Qwen2.5-VL-7B in bfloat16.

    Args:
        inputs: K. normed: each program computes the norm, too. gated: two weights per output.
    """
    if not normed:
        return LinearTile(2 if inputs >= _LONG_INPUTS else 4, 2048, 8)
    return LinearTile(4, 1024) if gated else LinearTile(8, 512)


@triton.jit
def _one_row(
    row_ptr: tl.tensor,
    gain_ptr: tl.tensor,
    first_ptr: tl.tensor,
    second_ptr: tl.tensor,
    third_ptr: tl.tensor,
    first_bias_ptr: tl.tensor,
    second_bias_ptr: tl.tensor,
    third_bias_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    out_ptr: tl.tensor,
    first_size: tl.tensor,
    second_size: tl.tensor,
    third_size: tl.tensor,
    epsilon: tl.tensor,
    INPUTS: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Grid (blocks of all outputs)."""
    weight, bias, size, block, before = _weight_of(
        tl.program_id(0), first_ptr, second_ptr, third_ptr, first_bias_ptr, second_bias_ptr,
        third_bias_ptr, first_size, second_size, third_size, GATED, BLOCK_N,
    )  # fmt: skip
    line = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = line < size
    wide = line.to(tl.int64)[:, None] * INPUTS
    place = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    other = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, INPUTS, BLOCK_K):
        at = start + place
        value = tl.load(row_ptr + at, mask=at < INPUTS, other=0.0).to(tl.float32)
        if NORMED:
            square += value * value
            value *= tl.load(gain_ptr + at, mask=at < INPUTS, other=0.0).to(tl.float32)
        tile = inside[:, None] & (at < INPUTS)[None, :]
        part = tl.load(weight + wide + at[None, :], mask=tile, other=0.0)
        total += part.to(tl.float32) * value[None, :]
        if GATED:
            part = tl.load(second_ptr + wide + at[None, :], mask=tile, other=0.0)
            other += part.to(tl.float32) * value[None, :]
    result = tl.sum(total, 1)
    gate = tl.sum(other, 1)
    if NORMED:
        factor = tl.rsqrt(tl.sum(square, 0) / INPUTS + epsilon)
        result *= factor
        gate *= factor
    kind = out_ptr.dtype.element_ty
    if BIASED:
        result += tl.load(bias + line, mask=inside, other=0.0).to(tl.float32)
    # Rounded where a layer of transformers stores a tensor.
    result = result.to(kind).to(tl.float32)
    if GATED:
        silu = (result / (1.0 + tl.exp(-result))).to(kind).to(tl.float32)
        result = silu * gate.to(kind).to(tl.float32)
    if ADDED:
        result += tl.load(residual_ptr + before + line, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + before + line, result.to(kind), mask=inside)


@triton.jit
def _normalise(
    row_ptr: tl.tensor,
    gain_ptr: tl.tensor,
    out_ptr: tl.tensor,
    epsilon: tl.tensor,
    INPUTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Grid (M): RMSNorm, rounded as transformers rounds it."""
    at = tl.arange(0, BLOCK_K)
    inside = at < INPUTS
    place = tl.program_id(0) * INPUTS + at
    value = tl.load(row_ptr + place, mask=inside, other=0.0)
    exact = value.to(tl.float32)
    scaled = exact * tl.rsqrt(tl.sum(exact * exact, 0) / INPUTS + epsilon)
    gain = tl.load(gain_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scaled = scaled.to(value.dtype).to(tl.float32) * gain
    tl.store(out_ptr + place, scaled.to(value.dtype), mask=inside)


@triton.jit
def _gate(
    first_ptr: tl.tensor,
    second_ptr: tl.tensor,
    out_ptr: tl.tensor,
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (count / BLOCK): silu(first) * second, rounded as transformers rounds it."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(first_ptr + at, mask=at < count, other=0.0)
    second = tl.load(second_ptr + at, mask=at < count, other=0.0)
    exact = first.to(tl.float32)
    silu = (exact / (1.0 + tl.exp(-exact))).to(first.dtype).to(tl.float32)
    tl.store(out_ptr + at, (silu * second.to(tl.float32)).to(first.dtype), mask=at < count)


@triton.jit
def _weight_of(
    program: tl.tensor,
    first_ptr: tl.tensor,
    second_ptr: tl.tensor,
    third_ptr: tl.tensor,
    first_bias_ptr: tl.tensor,
    second_bias_ptr: tl.tensor,
    third_bias_ptr: tl.tensor,
    first_size: tl.tensor,
    second_size: tl.tensor,
    third_size: tl.tensor,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """A program's weight, bias and outputs, its block of them, and the outputs before them."""
    weight = first_ptr
    bias = first_bias_ptr
    size = first_size
    block = program
    before = first_size * 0
    if not GATED:
        first = tl.cdiv(first_size, BLOCK_N)
        second = first + tl.cdiv(second_size, BLOCK_N)
        if program >= second:
            weight = third_ptr
            bias = third_bias_ptr
            size = third_size
            block = program - second
            before = first_size + second_size
        elif program >= first:
            weight = second_ptr
            bias = second_bias_ptr
            size = second_size
            block = program - first
            before = first_size
    return weight, bias, size, block, before


@torch.no_grad()
def project(
    rows_MK: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    tile: LinearTile | None = None,
) -> Tensor:
    """Products of the same rows with one to three weights.

    Sums are float32; results are rounded to the dtype where transformers' layers store a tensor.

    Args:
        rows_MK: contiguous; float16, bfloat16 or float32.
        weights: each (N, K), contiguous, of the rows' dtype.
        biases: one (N,) for each weight, or None.
        norm: gain (K,) and epsilon of an RMSNorm of the rows before the product.
        gated: two weights of equal shape; returns silu(first) * second.
        residual: (M, sum of N), added to the result. Not with biases.
        tile: of a single row, by default `linear_tile`'s.

    Returns:
        (M, sum of N), or (M, N) if gated, in the rows' dtype. No gradient.

    Raises:
        ConfigError: shapes, dtypes or strides do not match, or both biases and a residual.
    """
    _check(rows_MK, weights, biases, norm, gated, residual)
    count, inputs = rows_MK.shape
    sizes = [len(weight) for weight in weights]
    width = sizes[0] if gated else sum(sizes)
    out = torch.empty(count, width, dtype=rows_MK.dtype, device=rows_MK.device)
    with torch.cuda.device_of(rows_MK):
        if count == 1:
            tile = tile or linear_tile(inputs, norm is not None, gated)
            absent = _MOST_WEIGHTS - len(weights)
            # The kernel needs pointers in any case; absent ones are not read.
            held = [*weights, *[weights[0]] * absent]
            shifts = [out] * _MOST_WEIGHTS if biases is None else [*biases, *[out] * absent]
            gain, epsilon = (rows_MK, 0.0) if norm is None else norm
            programs = sum(blocks(size, tile.outputs) for size in (sizes[:1] if gated else sizes))
            _one_row[(programs,)](
                rows_MK, gain, *held, *shifts, out if residual is None else residual, out,
                *sizes, *[0] * absent, epsilon,
                INPUTS=inputs, NORMED=norm is not None, GATED=gated, BIASED=biases is not None,
                ADDED=residual is not None, BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
                num_warps=tile.warps,
            )  # fmt: skip
            return out
        if norm is not None:
            normed_MK = torch.empty_like(rows_MK)
            _normalise[(count,)](
                rows_MK, norm[0], normed_MK, norm[1], INPUTS=inputs, BLOCK_K=padded(inputs)
            )
            rows_MK = normed_MK
        if gated:
            first, second = (torch.mm(rows_MK, weight.T) for weight in weights)
            grid = (blocks(out.numel(), _GATED),)
            _gate[grid](first, second, out, out.numel(), BLOCK=_GATED)
            return out
        added = biases if residual is None else residual.split(sizes, dim=1)
        for at, (weight, part) in enumerate(zip(weights, out.split(sizes, dim=1), strict=True)):
            if added is None:
                torch.mm(rows_MK, weight.T, out=part)
            else:
                torch.addmm(added[at], rows_MK, weight.T, out=part)
    return out


def _check(
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    norm: tuple[Tensor, float] | None,
    gated: bool,
    residual: Tensor | None,
) -> None:
    if rows.ndim != 2 or not len(rows) or rows.dtype not in _DTYPES:
        raise ConfigError(
            "rows",
            (tuple(rows.shape), rows.dtype),
            f"(M, K) with at least 1 row, dtype one of {_DTYPES}",
        )
    inputs = rows.shape[1]
    shapes = [tuple(weight.shape) for weight in weights]
    if not 1 <= len(weights) <= _MOST_WEIGHTS or any(shape[1:] != (inputs,) for shape in shapes):
        raise ConfigError("weights", shapes, f"1 to {_MOST_WEIGHTS} of shape (N, {inputs})")
    if gated and (len(weights) != 2 or shapes[0] != shapes[1] or biases is not None):
        raise ConfigError("weights", shapes, "gated: two of equal shape, without biases")
    wanted = [(shape[0],) for shape in shapes]
    if biases is not None and [tuple(bias.shape) for bias in biases] != wanted:
        raise ConfigError("biases", [tuple(bias.shape) for bias in biases], f"shapes {wanted}")
    if norm is not None and tuple(norm[0].shape) != (inputs,):
        raise ConfigError("norm", tuple(norm[0].shape), f"shape {(inputs,)}")
    width = shapes[0][0] if gated else sum(shape[0] for shape in shapes)
    if residual is not None and biases is not None:
        raise ConfigError("residual", "with biases", "one of them at most")
    if residual is not None and tuple(residual.shape) != (len(rows), width):
        raise ConfigError("residual", tuple(residual.shape), f"shape {(len(rows), width)}")
    extra = [*(biases or ()), *([] if norm is None else [norm[0]])]
    parts = [rows, *weights, *extra, *([] if residual is None else [residual])]
    if any(part.dtype != rows.dtype or not part.is_contiguous() for part in parts):
        found = [(part.dtype, part.stride()) for part in parts]
        raise ConfigError("rows, weights", found, f"all contiguous and {rows.dtype}")
