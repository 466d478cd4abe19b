"""Split decoding, in Triton's interpreter or compiled if a CUDA device is present."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE, draw, left_padded
from torch.nn.functional import scaled_dot_product_attention

from sf.attention.kernels import decode
from sf.attention.kernels.decode import decode_attention
from sf.errors import ConfigError


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """Several stretches at lengths that the interpreter can process."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(decode, "_SHORT", 64)


def reference(query, key, value, mask, scaling):
    """Float64, each query head with its own copy of its keys."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (part.double().repeat_interleave(repeats, dim=1) for part in (key, value))
    mask = None if mask is None else mask[:, None, None]
    out = scaled_dot_product_attention(
        query.double()[:, :, None], key, value, attn_mask=mask, scale=scaling
    )
    return out[:, :, 0]


def inputs(batch, entries, heads, groups, size, dtype, seed):
    query = draw([1] * batch, 1, heads, size, dtype, seed)[:, :, 0]
    key, value = (
        draw([entries] * batch, entries + 5, groups, size, dtype, seed + n, transposed=False)
        for n in (1, 2)
    )
    # A view into a larger buffer, as the pruned cache hands it over.
    return query, key[:, :, :entries], value[:, :, :entries]


@pytest.mark.parametrize(
    ("heads", "groups", "size", "dtype", "within"),
    [
        (6, 2, 8, torch.float32, 1e-6),
        (7, 1, 20, torch.float16, 1e-3),
        (2, 2, 64, torch.bfloat16, 1e-2),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_output_equals_float64(heads, groups, size, dtype, within, masked):
    query, key, value = inputs(2, 150, heads, groups, size, dtype, seed=1)
    mask = left_padded([150, 41], 150) if masked else None
    output = decode_attention(2 * query, key, value, mask, size**-0.5)
    wanted = reference(2 * query, key, value, mask, size**-0.5)
    assert output.dtype == dtype
    assert (output - wanted).abs().max() < within


def test_a_stretch_without_visible_entries_adds_nothing():
    """The second row sees nothing at all, the first only the last entry."""
    query, key, value = inputs(2, 130, 2, 1, 16, torch.float32, seed=4)
    mask = left_padded([1, 0], 130)
    output = decode_attention(query, key, value, mask, 0.25)
    torch.testing.assert_close(output[0], value[0, :, -1].expand(2, -1))
    assert (output[1] == 0).all()


def test_large_scores_do_not_overflow():
    query, key, value = inputs(1, 100, 2, 1, 16, torch.float32, seed=5)
    output = decode_attention(40 * query, 40 * key, value, None, 0.25)
    wanted = reference(40 * query, 40 * key, value, None, 0.25)
    assert (output - wanted).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("key", lambda q, k, v, m: (q, k[..., :4], v[..., :4], m)),
        ("query, key, value", lambda q, k, v, m: (q, k, v[:, :, 1:], m)),
        ("dtype", lambda q, k, v, m: (q, k.double(), v, m)),
        ("mask", lambda q, k, v, m: (q, k, v, m[:, 1:])),
    ],
)
def test_wrong_shapes_are_refused(field, change):
    query, key, value = inputs(1, 20, 2, 1, 8, torch.float32, seed=6)
    with pytest.raises(ConfigError, match=field):
        decode_attention(*change(query, key, value, left_padded([20], 20)), 0.25)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "size"), [(28, 4, 128), (16, 2, 128), (14, 2, 64)])
@pytest.mark.parametrize("masked", [False, True])
def test_output_on_the_device(dtype, heads, groups, size, masked):
    """The error is at most twice that of plain attention in the same dtype."""
    query, key, value = inputs(2, 20_001, heads, groups, size, dtype, seed=7)
    mask = left_padded([20_001, 7_777], 20_001) if masked else None
    wanted = reference(query, key, value, mask, size**-0.5)
    output = decode_attention(query, key, value, mask, size**-0.5)
    plain = scaled_dot_product_attention(
        query[:, :, None],
        key.repeat_interleave(heads // groups, dim=1),
        value.repeat_interleave(heads // groups, dim=1),
        attn_mask=None if mask is None else mask[:, None, None],
    )[:, :, 0]
    allowed = 2 * (plain - wanted).abs().max() + 1e-6
    assert (output - wanted).abs().max() <= allowed
