"""How many operations one layer of a prefill asks the device for."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from launches import launched
from layer_inputs import DEVICE, draw

from sf import TopK, TopP
from sf.attention.backends import using_backend
from sf.attention.backends.cuda import CudaBackend
from sf.attention.cache import prune_in_place
from sf.attention.forward_state import ForwardState
from sf.attention.layer import sparse_attention
from sf.selection import Probes

PROBES = Probes(recent=3, spread=4)
pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="counts through the interpreter")


@pytest.fixture
def waits(monkeypatch):
    """Where the host waits for the device."""
    names = []
    for name in ("tolist", "item", "cpu", "__bool__", "__int__", "__float__"):
        real = getattr(torch.Tensor, name)

        def spy(self, *args, name=name, real=real):
            names.append(name)
            return real(self, *args)

        monkeypatch.setattr(torch.Tensor, name, spy)
    return names


def layer_of(policy, backend, rows, length):
    """Runs a layer's attention; the first layer pays for what the forward's layers share."""
    query, key, value = (
        draw([length] * rows, length, heads, 16, torch.float32, seed)
        for seed, heads in enumerate((4, 2, 2))
    )
    valid = torch.ones(rows, length, dtype=torch.bool)
    state = ForwardState(kind="prefill", policy=policy, valid=valid)
    state.cache = prune_in_place(None, 2)
    state.open_cache(True)

    def run(layer):
        state.cache.update(key, value, layer)
        module = SimpleNamespace(layer_idx=layer)
        with using_backend(backend), torch.no_grad():
            return sparse_attention(module, query, key, value, None, sparse_state=state)

    run(0)
    return lambda: run(1)


@pytest.mark.parametrize("uniform", ["flash", "cudnn"])
@pytest.mark.parametrize(
    ("policy", "most"),
    [(TopK(ratio=0.25, probes=PROBES), 17), (TopP(p=0.5, probes=PROBES), 24)],
)
def test_launches_of_a_layer(waits, uniform, policy, most):
    run = layer_of(policy, CudaBackend(uniform=uniform), 1, 90)
    waits.clear()
    with launched() as counted:
        run()
    assert Counter(counted.kernels) == Counter(
        ["_row_statistics", "_merge_statistics", "_key_mass", "_gather", "_spread"]
    )
    assert len(counted.names) <= most, counted.names
    assert waits == ["tolist"]
    assert not {"_local_scalar_dense", "nonzero", "is_nonzero"} & set(counted.names)
