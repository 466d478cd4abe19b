"""Projections of a few rows, in Triton's interpreter or compiled if a CUDA device is present."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE
from torch.nn.functional import silu

from sf.attention.kernels.linear import LinearTile, project
from sf.errors import ConfigError

EPSILON = 1e-3
SMALL = LinearTile(8, 32)


def random(*shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def inputs(rows, width, sizes, dtype):
    weights = [random(n, width, dtype=dtype, seed=i) / width**0.5 for i, n in enumerate(sizes)]
    biases = [random(n, dtype=dtype, seed=10 + i) for i, n in enumerate(sizes)]
    gain = 1 + random(width, dtype=dtype, seed=20) / 4
    return 3 * random(rows, width, dtype=dtype, seed=30), weights, biases, gain


def normed(rows, gain):
    rows = rows.double()
    return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + EPSILON) * gain.double()


def products(rows, weights):
    return [rows.double() @ weight.double().T for weight in weights]


def check_all(rows, width, sizes, dtype, within, tile):
    """The four forms that a decoder layer uses, against float64."""
    given, weights, biases, gain = inputs(rows, width, sizes, dtype)
    queries = project(given, weights, biases, norm=(gain, EPSILON), tile=tile)
    parts = products(normed(given, gain), weights)
    wanted = [part + bias.double() for part, bias in zip(parts, biases, strict=True)]
    close(queries, torch.cat(wanted, -1), within)

    before = random(rows, sizes[0], dtype=dtype, seed=40)
    kept = before.clone()
    added = project(given, weights[:1], residual=before, tile=tile)
    close(added, kept.double() + products(given, weights[:1])[0], within)
    assert torch.equal(before, kept)

    pair = [weights[0], random(sizes[0], width, dtype=dtype, seed=50) / width**0.5]
    gate, up = products(normed(given, gain), pair)
    gated = project(given, pair, norm=(gain, EPSILON), gated=True, tile=tile)
    close(gated, silu(gate) * up, within)

    close(project(given, weights[1:2], tile=tile), products(given, weights[1:2])[0], within)


def close(output, wanted, within):
    assert output.shape == wanted.shape
    assert (output - wanted).abs().max() <= within * (1 + wanted.abs().max())


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 4e-2)]
)
def test_results_equal_float64(rows, dtype, within):
    """Sizes that no tile divides; the weights end within blocks."""
    check_all(rows, 72, (40, 9, 10), dtype, within, SMALL)


def test_a_row_of_several_does_not_see_the_others():
    given, weights, biases, gain = inputs(5, 40, (16, 8, 8), torch.float32)
    together = project(given, weights, biases, norm=(gain, EPSILON))
    changed = given.clone()
    changed[1:] = 7.0
    other = project(changed, weights, biases, norm=(gain, EPSILON))
    assert torch.equal(together[0], other[0])
    assert not torch.equal(together[1], other[1])


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rows", lambda rows, weights: (rows[:0], weights, {})),
        ("rows", lambda rows, weights: (rows.double(), weights, {})),
        ("weights", lambda rows, weights: (rows[:, :8].contiguous(), weights, {})),
        ("weights", lambda rows, weights: (rows, weights, {"gated": True})),
        ("rows, weights", lambda rows, weights: (rows, [weights[0].half()], {})),
        ("rows, weights", lambda rows, weights: (rows.T.contiguous().T, weights, {})),
        ("biases", lambda rows, weights: (rows, weights, {"biases": [rows[0]] * 3})),
        ("norm", lambda rows, weights: (rows, weights, {"norm": (rows[0, :3], EPSILON)})),
        ("residual", lambda rows, weights: (rows, weights, {"residual": rows})),
        (
            "residual",
            lambda rows, weights: (
                rows,
                weights[:1],
                {"biases": [rows[0, :16].clone()], "residual": rows[:, :16].contiguous()},
            ),
        ),
    ],
)
def test_mismatched_inputs_are_refused(field, change):
    given, weights, _, _ = inputs(2, 40, (16, 8, 8), torch.float32)
    rows, weights, options = change(given, weights)
    with pytest.raises(ConfigError) as refused:
        project(rows, weights, **options)
    assert refused.value.field == field


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("width", "sizes"), [(3584, (3584, 512, 512)), (2048, (2048, 256, 256)), (18944, (3584, 8, 8))]
)
def test_results_on_the_device(rows, dtype, width, sizes):
    """The sizes of Qwen2.5-VL with the tiles in use; width 18,944 is the 7B's down projection."""
    within = 4e-2 if dtype == torch.bfloat16 else 4e-3
    check_all(rows, width, sizes, dtype, within, None)
