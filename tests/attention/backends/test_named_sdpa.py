"""The selection of PyTorch's kernels: never one that must be planned for every new length."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from layer_inputs import DEVICE, draw
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

import sf
from sf.attention.backends import named_sdpa
from sf.attention.backends.cuda import CudaBackend
from sf.attention.backends.named_sdpa import attend

FLASH, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION


class OnCuda:
    """The attributes that the selection reads from a tensor, for a device that is not present."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, size: int = 128) -> None:
        self.device, self.dtype, self.shape = torch.device("cuda"), dtype, (1, 8, 4, size)


@pytest.fixture
def asked(monkeypatch):
    """The requested kernels, and whether their order counts."""
    calls = []
    monkeypatch.setattr(
        named_sdpa, "sdpa_kernel", lambda names, set_priority: calls.append((names, set_priority))
    )
    return calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_never_meets_cudnn_unasked(asked, dtype):
    named_sdpa._kernels(OnCuda(dtype), plans=False)
    named_sdpa._kernels(OnCuda(dtype), plans=True)
    (plain, plain_order), (planned, planned_order) = asked
    assert plain[0] == FLASH
    assert CUDNN not in plain
    assert not plain_order
    # Without the order PyTorch would put its own first.
    assert planned[0] == CUDNN
    assert planned_order


def test_other_inputs_keep_pytorchs_choice(asked):
    named_sdpa._kernels(OnCuda(torch.float32), plans=False)
    named_sdpa._kernels(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16), plans=True)
    assert asked == []


def test_scores_of_grouped_queries_are_never_held_on_a_gpu(monkeypatch):
    """Where flash does not apply, the math kernel would hold heads x queries x keys."""
    monkeypatch.setattr(named_sdpa, "runs_flash", lambda device: True)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert named_sdpa._takes_groups(OnCuda(), None)
    assert not named_sdpa._takes_groups(OnCuda(), mask)
    assert not named_sdpa._takes_groups(OnCuda(torch.float32), None)
    assert not named_sdpa._takes_groups(OnCuda(size=320), None)
    monkeypatch.setattr(named_sdpa, "runs_flash", lambda device: False)
    assert not named_sdpa._takes_groups(OnCuda(), None)


def test_cudnn_is_taken_on_hopper_in_half_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: True)
    for capability, fits in (((8, 9), False), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        named_sdpa._has_cudnn.cache_clear()
        assert named_sdpa.runs_cudnn(OnCuda()) is fits
    assert not named_sdpa.runs_cudnn(OnCuda(torch.float32))
    assert not named_sdpa.runs_cudnn(OnCuda(size=256))
    assert not named_sdpa.runs_cudnn(OnCuda(size=100))
    assert not named_sdpa.runs_cudnn(torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16))
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    assert not named_sdpa.runs_cudnn(OnCuda())
    monkeypatch.undo()
    named_sdpa._has_cudnn.cache_clear()


@pytest.mark.parametrize("takes", [True, False])
def test_repeated_heads_are_the_same_attention(monkeypatch, takes):
    monkeypatch.setattr(named_sdpa, "_takes_groups", lambda query, mask: takes)
    query, key, value = (
        draw([9], 9, heads, 16, torch.float32, seed) for seed, heads in enumerate((6, 2, 2))
    )
    mask = torch.ones(9, 9, dtype=torch.bool, device=DEVICE).tril()
    wanted = scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), mask, scale=0.25
    )
    torch.testing.assert_close(attend(query, key, value, 0.25, mask=mask), wanted)
    torch.testing.assert_close(attend(query, key, value, 0.25, causal=True), wanted)


def test_backends_call_no_attention_by_another_way():
    """PyTorch's own choice would be planned for each length again."""
    folder = Path(sf.__file__).parent / "attention" / "backends"
    users = [
        file.name
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.alias) and node.name == "scaled_dot_product_attention"
    ]
    assert users == ["named_sdpa.py"]


@pytest.mark.gpu
def test_new_lengths_cost_no_plan():
    """Twenty lengths: the first call takes at most a few times as long as the second."""
    ratios = []
    for length in range(2049, 2049 + 20 * 131, 131):
        parts = [draw([length], length, n, 128, torch.bfloat16, n) for n in (28, 4, 4)]
        index = torch.arange(length, device=DEVICE)[None]
        taken = []
        for _ in range(2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            CudaBackend().prefill(*parts, index, [length], 0.1, 0.0)
            end.record()
            torch.cuda.synchronize()
            taken.append(begin.elapsed_time(end))
        ratios.append(taken[0] / taken[1])
    assert sorted(ratios)[10] < 3
