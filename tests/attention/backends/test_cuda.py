"""The CUDA backend: on any machine in Triton's interpreter, completely on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from layer_inputs import DEVICE, draw, left_padded
from tiny_models import batch, build, prompt

from sf import TopP, sparsify
from sf.attention.backends import SdpaBackend, backend_for, cuda, packed, using_backend
from sf.attention.backends.cuda import CudaBackend
from sf.selection import Probes

HALF = (torch.float16, torch.bfloat16)


def columns(lengths, width, seed):
    """Index of the seam: each row's active columns last, others of the row before them."""
    generator = torch.Generator().manual_seed(seed)
    index = []
    for length in lengths:
        order = torch.randperm(width, generator=generator)
        rest, active = order[length : max(lengths)], order[:length].sort().values
        index.append(torch.cat([rest, active]))
    return torch.stack(index).to(DEVICE)


def layer_tensors(rows, width, heads, groups, size, dtype, transposed=True):
    return [
        draw([width] * rows, width, count, size, dtype, seed, transposed).requires_grad_()
        for seed, count in enumerate((heads, groups, groups))
    ]


def compare(parts, index, lengths, dtype, backend, out_within, gradient_within):
    """`backend` against float64 `SdpaBackend`: outputs, cache entries, gradients."""
    exact = [part.detach().double().requires_grad_() for part in parts]
    out, key, value = backend.prefill(*parts, index, lengths, 0.25, 0.0)
    wanted, _, _ = SdpaBackend().prefill(*exact, index, lengths, 0.25, 0.0)
    assert out.dtype == dtype
    assert (out - wanted).abs().max() < out_within
    active = torch.zeros(out.shape[:2], dtype=torch.bool, device=DEVICE)
    for row, length in enumerate(lengths):
        last = index[row, index.shape[1] - length :]
        active[row, last] = True
        assert torch.equal(key[row, :, index.shape[1] - length :], parts[1][row][:, last])
        assert torch.equal(value[row, :, index.shape[1] - length :], parts[2][row][:, last])
    assert (out[~active] == 0).all()
    push = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    gradients = torch.autograd.grad((out * push.to(dtype)).sum(), parts)
    right = torch.autograd.grad((wanted * push.double()).sum(), exact)
    for left, other in zip(gradients, right, strict=True):
        assert (left - other).abs().max() < gradient_within


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lengths", [[5, 9, 3], [6, 6, 6], [4], [0, 3]])
def test_prefill_equals_gathered_attention(lengths, transposed):
    parts = layer_tensors(len(lengths), 12, 6, 2, 16, torch.float32, transposed)
    index = columns(lengths, 12, seed=1)
    compare(parts, index, lengths, torch.float32, CudaBackend(), 1e-5, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("ragged", ["packed", "rows"])
@pytest.mark.parametrize("lengths", [[500, 900, 33], [640, 640], [0, 700], [1000]])
@pytest.mark.parametrize(("heads", "groups", "size"), [(28, 4, 128), (14, 2, 64)])
def test_prefill_on_the_device(dtype, ragged, lengths, heads, groups, size):
    parts = layer_tensors(len(lengths), 1000, heads, groups, size, dtype)
    index = columns(lengths, 1000, seed=2)
    unit = torch.finfo(dtype).eps
    compare(parts, index, lengths, dtype, CudaBackend(ragged=ragged), 8 * unit, 64 * unit)


@pytest.fixture
def planned(monkeypatch):
    """The lengths that cuDNN got, on a machine that would run it, for rows of 8 tokens and more."""
    calls = []
    real = packed.attend

    def spy(query, *given, plans=False, **named):
        if plans:
            calls.append(query.shape[2])
        return real(query, *given, plans=plans, **named)

    for module in (cuda, packed):
        monkeypatch.setattr(module, "attend", spy)
    monkeypatch.setattr(packed, "_PLAN_LENGTHS", 4)
    monkeypatch.setattr(cuda, "runs_cudnn", lambda query: True)
    monkeypatch.setattr(cuda, "_LEAST_PLANNED", 9)
    return calls


def attend_once(backend, length, dropout=0.0, grad=False):
    parts = layer_tensors(2, 12, 6, 2, 16, torch.float32)
    index = columns([length] * 2, 12, seed=1)
    with torch.set_grad_enabled(grad):
        backend.prefill(*parts, index, [length] * 2, 0.25, dropout)


def test_long_rows_get_cudnn_by_default(planned, monkeypatch):
    for length in (8, 9, 12):
        attend_once(CudaBackend(), length)
    assert planned == [12, 12]
    monkeypatch.setattr(cuda, "runs_cudnn", lambda query: False)
    attend_once(CudaBackend(), 12)
    assert planned == [12, 12]


def test_gradients_and_dropout_keep_flash(planned):
    attend_once(CudaBackend(), 12, grad=True)
    attend_once(CudaBackend(), 12, dropout=0.1)
    assert planned == []


def test_a_named_kernel_is_used_at_every_length(planned):
    for length in (5, 12):
        attend_once(CudaBackend(uniform="flash"), length)
        for grad in (True, False):
            attend_once(CudaBackend(uniform="cudnn"), length, grad=grad)
    assert planned == [8, 8, 12, 12]


@pytest.mark.parametrize("uniform", ["flash", "cudnn"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lengths", [[6, 6, 6], [4], [12], [5, 9, 3], [0, 3], [12, 2]])
def test_prefill_without_gradients_is_the_same(planned, uniform, transposed, lengths):
    """The gathering kernels copy what PyTorch's operators copy."""
    parts = layer_tensors(len(lengths), 12, 6, 2, 16, torch.float32, transposed)
    index = columns(lengths, 12, seed=1)
    backend = CudaBackend(uniform=uniform)
    wanted = backend.prefill(*parts, index, lengths, 0.25, 0.0)
    with torch.no_grad():
        output = backend.prefill(*parts, index, lengths, 0.25, 0.0)
    for left, right in zip(output, wanted, strict=True):
        assert left.shape == right.shape
        assert not left.requires_grad
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)
    for left, right in zip(output[1:], wanted[1:], strict=True):
        assert torch.equal(left, right)


@pytest.mark.gpu
@pytest.mark.parametrize("uniform", ["auto", "flash", "cudnn"])
@pytest.mark.parametrize("lengths", [[640, 640], [8193], [70, 8193, 0]])
def test_prefill_without_gradients_on_the_device(uniform, lengths):
    dtype = torch.bfloat16
    parts = layer_tensors(len(lengths), 9000, 7, 1, 128, dtype)
    index = columns(lengths, 9000, seed=2)
    with torch.no_grad():
        output = CudaBackend(uniform=uniform).prefill(*parts, index, lengths, 0.1, 0.0)
    wanted = CudaBackend(uniform="flash").prefill(*parts, index, lengths, 0.1, 0.0)
    assert (output[0] - wanted[0]).abs().max() < 8 * torch.finfo(dtype).eps
    for left, right in zip(output[1:], wanted[1:], strict=True):
        assert torch.equal(left, right)


def test_decode_is_split_for_long_caches_only(monkeypatch):
    calls = []
    fused = "sf.attention.backends.cuda.decode_attention"

    def spy(*parts):
        calls.append(parts[1].shape[2])
        return real(*parts)

    from sf.attention.backends.cuda import decode_attention as real

    monkeypatch.setattr(fused, spy)
    monkeypatch.setattr("sf.attention.backends.cuda._LEAST_ENTRIES", 100)
    query = draw([1, 1], 1, 6, 16, torch.float32, 1)
    for entries in (40, 120):
        key, value = (draw([0, 0], entries, 2, 16, torch.float32, seed) for seed in (2, 3))
        mask = left_padded([entries, 17], entries)[:, None, None]
        for seen in (None, mask):
            output = CudaBackend().decode(query, key, value, seen, 0.25)
            wanted = SdpaBackend().decode(query, key, value, seen, 0.25)
            torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
    assert calls == [120, 120]
    # The kernels record no gradient, and take one new token.
    CudaBackend().decode(query.requires_grad_(), key, value, None, 0.25).sum().backward()
    assert query.grad is not None
    CudaBackend().decode(draw([1, 1], 2, 6, 16, torch.float32, 4), key, value, None, 0.25)
    assert calls == [120, 120]


def test_float64_stays_float64():
    """Dtypes that the kernels do not support keep their precision."""
    query, key = (draw([20], 20, heads, 16, torch.float64, heads) for heads in (4, 2))
    valid = left_padded([20], 20)
    mass = CudaBackend().probe_mass(query, key, *Probes(3, 4).columns(valid), valid, 0.25)
    assert mass.dtype == torch.float64


def test_a_model_generates_the_same():
    """Every operation of the backend in a whole model: kept sets, tokens, ragged batch."""
    model = build("qwen2_5_vl").to(DEVICE)
    inputs = batch([prompt("image", 9, 1), prompt("text", 20, 3)])
    inputs = {name: part.to(DEVICE) for name, part in inputs.items()}
    policy = TopP(p=[0.6, 0.8], probes=Probes(recent=3, spread=4))

    def generate(backend):
        with using_backend(backend), sparsify(model, policy) as trace:
            tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        return tokens, trace

    wanted, plain = generate(SdpaBackend())
    output, trace = generate(CudaBackend())
    assert torch.equal(output, wanted)
    assert plain.token_ratio.max() < 1
    for left, right in zip(trace.kept, plain.kept, strict=True):
        assert torch.equal(left, right)


def test_the_device_chooses_the_backend():
    assert isinstance(backend_for(torch.device("cuda")), CudaBackend)
    assert type(backend_for(torch.device("cpu"))) is SdpaBackend
    with using_backend(CudaBackend(uniform="cudnn")):
        assert backend_for(torch.device("cpu")).uniform == "cudnn"
    assert type(backend_for(torch.device("cpu"))) is SdpaBackend


@pytest.mark.gpu
def test_the_host_waits_for_nothing():
    """Scores, packed prefill and split decoding launch device work without waiting for it."""
    lengths, width = [700, 400], 2000
    query, key, value = (p.detach() for p in layer_tensors(2, width, 14, 2, 64, torch.bfloat16))
    index = columns(lengths, width, seed=3)
    valid = left_padded([2000, 1500], width)
    backend = CudaBackend()

    def work():
        probes = Probes().columns(valid)
        backend.probe_mass(query, key, *probes, valid, 0.125)
        backend.prefill(query, key, value, index, lengths, 0.125, 0.0)
        backend.prefill(query, key, value, index, [index.shape[1]] * 2, 0.125, 0.0)
        backend.decode(query[:, :, -1:], key, value, valid[:, None, None], 0.125)

    work()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
