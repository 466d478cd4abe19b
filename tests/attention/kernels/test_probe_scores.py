"""The fused probe scores, in Triton's interpreter or compiled if a CUDA device is present."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE, draw, left_padded
from oracle import select

from sf.attention.backends import SdpaBackend
from sf.attention.kernels import probe_scores
from sf.attention.kernels.probe_scores import probe_mass
from sf.attention.kernels.tiles import Tiles
from sf.errors import ConfigError
from sf.selection import Probes

SMALL = Tiles(rows=32, keys=16, warps=2, stages=1)
PROBES = Probes(recent=5, spread=6)


def reference(query, key, column, present, valid, scaling):
    return SdpaBackend().probe_mass(query.double(), key.double(), column, present, valid, scaling)


@pytest.mark.parametrize(
    ("heads", "groups", "size", "dtype"),
    [
        (6, 2, 8, torch.float32),
        (7, 1, 16, torch.float16),
        (4, 4, 20, torch.bfloat16),
        (2, 1, 64, torch.bfloat16),
    ],
)
def test_mass_equals_float64(heads, groups, size, dtype):
    """GQA groups that are no power of two, head sizes that fill no tile, ragged left padding."""
    lengths = [37, 21, 1, 0]
    query = 3 * draw(lengths, 41, heads, size, dtype, seed=1)
    key = draw(lengths, 41, groups, size, dtype, seed=2)
    valid = left_padded(lengths, 41)
    column, present = PROBES.columns(valid)
    mass = probe_mass(query, key, column, present, valid, size**-0.5, SMALL)
    wanted = reference(query, key, column, present, valid, size**-0.5)
    assert mass.dtype == torch.float32
    # The inputs are rounded alike; products and sums are in float32 for every dtype.
    assert (mass - wanted).abs().max() < 2e-6
    assert (mass[~valid] == 0).all()
    torch.testing.assert_close(mass.sum(-1), present.sum(-1).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 130])
def test_mass_equals_the_oracle(length):
    """The oracle shares no code with sf: probes, causal limits and the mean over heads."""
    query = draw([length], length, 4, 16, torch.float32, seed=length)
    key = draw([length], length, 2, 16, torch.float32, seed=length + 1)
    valid = left_padded([length], length)
    column, present = Probes().columns(valid)
    mass = probe_mass(query, key, column, present, valid, 0.25, Tiles(32, 32, 2, 1))
    row = select(query[0].double().cpu().numpy(), key[0].double().cpu().numpy(), p=0.9)
    assert mass.cpu().numpy()[0] == pytest.approx(row.mass, abs=2e-6)


def test_padding_inside_and_behind_is_ignored():
    """Validity is a mask: padding may be anywhere."""
    query, key = (draw([30], 30, 2, 16, torch.float32, seed) for seed in (3, 4))
    valid = torch.ones(1, 30, dtype=torch.bool, device=DEVICE)
    valid[0, [0, 7, 8, 20, 29]] = False
    column, present = PROBES.columns(valid)
    mass = probe_mass(query, key, column, present, valid, 0.25, SMALL)
    alone = probe_mass(
        query[:, :, valid[0]],
        key[:, :, valid[0]],
        *PROBES.columns(valid[:, valid[0]]),
        valid[:, valid[0]],
        0.25,
        SMALL,
    )
    torch.testing.assert_close(mass[valid], alone[0], rtol=1e-6, atol=1e-6)
    assert (mass[~valid] == 0).all()


def test_stretches_join(monkeypatch):
    """Rows whose keys are split over several programs, some of which see none of a probe's keys."""
    query, key = (draw([90, 40], 90, 2, 16, torch.float32, seed) for seed in (5, 6))
    valid = left_padded([90, 40], 90)
    column, present = PROBES.columns(valid)
    whole = probe_mass(query, key, column, present, valid, 0.25, SMALL)
    monkeypatch.setattr(probe_scores, "_STRETCH", 32)
    split = probe_mass(query, key, column, present, valid, 0.25, SMALL)
    torch.testing.assert_close(split, whole, rtol=1e-6, atol=1e-6)


def test_large_scores_do_not_overflow():
    """Scores of a few hundred: the largest is subtracted before the exponential."""
    query, key = (30 * draw([40], 40, 2, 16, torch.float32, seed) for seed in (7, 8))
    valid = left_padded([40], 40)
    column, present = PROBES.columns(valid)
    mass = probe_mass(query, key, column, present, valid, 0.25, SMALL)
    wanted = reference(query, key, column, present, valid, 0.25)
    assert mass.isfinite().all()
    assert (mass - wanted).abs().max() < 1e-3


def test_layout_and_repetition_do_not_matter():
    """Strides change nothing, and equal inputs give equal bits."""
    query, key = (draw([33, 20], 33, 4, 16, torch.float16, seed) for seed in (9, 10))
    valid = left_padded([33, 20], 40)[:, 7:]
    assert not valid.is_contiguous()
    column, present = PROBES.columns(valid)
    first = probe_mass(query, key, column, present, valid, 0.25, SMALL)
    again = probe_mass(
        query.contiguous(), key.contiguous(), column, present, valid.contiguous(), 0.25, SMALL
    )
    assert torch.equal(first, again)


def test_gradients_are_not_recorded():
    query = draw([20], 20, 2, 16, torch.float32, 11).requires_grad_()
    key = draw([20], 20, 2, 16, torch.float32, 12).requires_grad_()
    valid = left_padded([20], 20)
    assert not probe_mass(query, key, *PROBES.columns(valid), valid, 0.25, SMALL).requires_grad


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("key", lambda a: {**a, "key_BGLD": a["key_BGLD"][:, :, 1:]}),
        ("key", lambda a: {**a, "key_BGLD": a["key_BGLD"].repeat(1, 3, 1, 1)}),
        ("dtype", lambda a: {**a, "query_BHLD": a["query_BHLD"].double()}),
        ("column", lambda a: {**a, "column_BP": a["column_BP"][:, :0]}),
        ("present", lambda a: {**a, "present_BP": a["present_BP"].int()}),
        ("valid", lambda a: {**a, "valid_BL": a["valid_BL"][:, 1:]}),
    ],
)
def test_wrong_shapes_are_refused(field, change):
    valid = left_padded([20], 20)
    column, present = PROBES.columns(valid)
    arguments = {
        "query_BHLD": draw([20], 20, 4, 16, torch.float32, 1),
        "key_BGLD": draw([20], 20, 2, 16, torch.float32, 2),
        "column_BP": column,
        "present_BP": present,
        "valid_BL": valid,
        "scaling": 0.25,
    }
    with pytest.raises(ConfigError, match=field):
        probe_mass(**change(arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "size"), [(28, 4, 128), (16, 2, 128), (14, 2, 64)])
def test_mass_on_the_device(dtype, heads, groups, size):
    """The tiles in use, at Qwen's shapes, lengths beyond a stretch."""
    lengths = [5000, 3333]
    query = draw(lengths, 5000, heads, size, dtype, seed=1)
    key = draw(lengths, 5000, groups, size, dtype, seed=2)
    valid = left_padded(lengths, 5000)
    column, present = Probes().columns(valid)
    mass = probe_mass(query, key, column, present, valid, size**-0.5)
    wanted = reference(query, key, column, present, valid, size**-0.5)
    assert (mass - wanted).abs().max() < 1e-5
    assert torch.equal(mass, probe_mass(query, key, column, present, valid, size**-0.5))
    # Nothing of heads x probes x length is held: far less than one float32 number for each.
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    probe_mass(query, key, column, present, valid, size**-0.5)
    used = torch.cuda.max_memory_allocated() - before
    assert used < 0.1 * len(lengths) * heads * 128 * 5000 * 4
