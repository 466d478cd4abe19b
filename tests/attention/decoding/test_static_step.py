"""What a CUDA graph needs of a step: the host reads no value, shapes and addresses stay."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from tiny_models import batch, build, prompt
from torch.utils._python_dispatch import TorchDispatchMode

from sf import TopP
from sf.attention.backends.cuda import CudaBackend
from sf.attention.decoding import prefill
from sf.attention.decoding import step as step_module
from sf.attention.decoding.choice import Greedy, Rules, Sampled
from sf.attention.decoding.per_row import PerRow, RowRules
from sf.training.sampling import truncations

# Operators that hand a value to the host, or whose result's shape depends on values.
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class Recorder(TorchDispatchMode):
    """Every operator with the shapes of its inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        shapes = [
            (tuple(part.shape), part.dtype, part.stride())
            for part in torch.utils._pytree.tree_leaves((args, kwargs, out))
            if isinstance(part, torch.Tensor)
        ]
        devices = {
            part.device
            for part in torch.utils._pytree.tree_leaves((args, kwargs, out))
            if isinstance(part, torch.Tensor)
        }
        plain = [
            part
            for part in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(part, (int, float, bool))
        ]
        self.calls.append((str(func), shapes, plain))
        assert len(devices) <= 1, f"{func} moves between devices"
        return out


def made(loop, tokens):
    """Generate tokens; returns all tokens of the answers so far."""
    loop.advance(tokens)
    return loop.step.written[:, : int(loop.step.made.max())].clone()


@pytest.fixture
def loop(model):
    inputs = batch([prompt("image", 9, 1), prompt("video", 14, 2), prompt("text", 20, 3)])
    model.generation_config.repetition_penalty = 1.2
    try:
        start = prefill(model, inputs, TopP(p=[0.5, 0.8, 0.95]))
    finally:
        model.generation_config.repetition_penalty = 1.0
    return start.loop(6)


def test_every_step_is_the_same_and_reads_nothing(loop):
    recorded = []
    for _ in range(3):
        with Recorder() as record:
            loop.advance(1)
        recorded.append(record.calls)
    assert len(recorded[0]) > 100
    assert recorded[0] == recorded[1] == recorded[2]
    names = {name.split(".")[1] for name, _, _ in recorded[0]}
    assert not names & set(WAITS)
    assert {"index_put_", "argmax", "scaled_dot_product_attention"} <= names


def test_the_recorder_sees_a_read():
    with Recorder() as record:
        bool(torch.ones(3).all())
        torch.ones(3).nonzero()
    names = {name.split(".")[1] for name, _, _ in record.calls}
    assert {"_local_scalar_dense", "nonzero"} <= names | {"is_nonzero", "item"}


def test_addresses_stay(loop):
    step = loop.step

    def places():
        state = (
            step.token,
            step.position,
            step.finished,
            step.choice.seen,
            step.written,
            step.made,
        )
        state = (*state, step.cache.at)
        parts = (*state, *step.cache.keys, *step.cache.values, *step.cache.masks)
        return [part.data_ptr() for part in parts]

    before = places()
    loop.advance(4)
    loop.restart()
    loop.advance(2)
    assert places() == before


class FromTheHost(TorchDispatchMode):
    """Refuses tensors that neither existed before nor are results: made of the host's numbers.

    A number that fills a tensor is an argument of its kernel, and no copy.
    """

    def __init__(self, known):
        super().__init__()
        self.known = [part.untyped_storage() for part in known]
        self.addresses = {storage.data_ptr() for storage in self.known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        for part in tensors((args, kwargs)):
            number = part.dim() == 0 and func in (aten.lift_fresh.default, aten.fill_.Tensor)
            address = part.untyped_storage().data_ptr()
            assert number or address in self.addresses, f"{func} reads numbers of the host"
        out = func(*args, **(kwargs or {}))
        for part in tensors(out) if func is not aten.lift_fresh.default else []:
            self.known.append(part.untyped_storage())  # alive, so that no address returns
            self.addresses.add(part.untyped_storage().data_ptr())
        return out


def tensors(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [part for part in leaves if isinstance(part, torch.Tensor)]


CHOICES = {
    "greedy": lambda device: Greedy(
        Rules(forbidden=(3,), repetition_penalty=1.2), 96, device, torch.ones(2, 1).long()
    ),
    "sampled": lambda device: Sampled(0.8, [3, 4], [1, 2], 96, device, truncations(5, 0.9, 0.1)),
    "per row": lambda device: PerRow(
        [RowRules(), RowRules(temperature=0.7, top_p=0.8, seed=1)],
        torch.zeros(2, 96, dtype=torch.bool),
        [3, 4],
    ),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_a_step_copies_nothing_from_the_host(choice):
    """A recording on CUDA refuses such a copy."""
    model = build("qwen2_5_vl")
    inputs = batch([prompt("image", 9, 1), prompt("text", 20, 3)])
    step = prefill(model, inputs, TopP(p=0.6), forced=True).loop(3).step
    step.choice = choice(torch.device("cpu"))
    step.logps = torch.zeros(step.written.shape)
    owners = [vars(each) for each in (step, step.cache, step.choice, step.choice._forbidden)]
    known = [*model.parameters(), *model.buffers(), *tensors(owners)]
    with FromTheHost(known) as record:
        step()
    assert len(record.known) > len(known) + 100


def test_with_the_device_kernel(monkeypatch):
    """The step with the CUDA backend's decode kernel, here in Triton's interpreter."""
    from sf.attention.backends import cuda

    model = build("qwen2_5_vl")
    inputs = batch([prompt("image", 9, 1), prompt("text", 20, 3)])
    right = prefill(model, inputs, TopP(p=0.6), forced=True).loop(3)
    right = made(right, 3)
    start = prefill(model, inputs, TopP(p=0.6), forced=True)
    calls = []
    kernel = cuda.decode_attention
    monkeypatch.setattr(cuda, "_LEAST_ENTRIES", 0)
    monkeypatch.setattr(cuda, "decode_attention", lambda *given: calls.append(1) or kernel(*given))
    monkeypatch.setattr(step_module, "backend_for", lambda device: CudaBackend())
    assert torch.equal(made(start.loop(3), 3), right)
    assert len(calls) == 3 * 3


class Graph:
    """Replaces a CUDA graph: `replay` calls what was called under `recording`."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for call in self.calls:
            call()


def test_recording_warms_up_beside_the_stream_and_starts_anew(monkeypatch, model):
    """The order of calls around a recording; stand-ins replace the CUDA device."""
    inputs = batch([prompt("image", 9, 1), prompt("text", 20, 3)])
    right = made(prefill(model, inputs, TopP(p=0.6), forced=True).loop(5), 5)
    calls = []

    class Stream:
        def __init__(self, device=None, name="side"):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def inside(what):
        calls.append(f"into {what}")
        yield
        calls.append(f"out of {what}")

    @contextmanager
    def recording(graph):
        with inside("recording"):
            graph.calls.append(step)
            yield

    fake = {
        "Stream": Stream,
        "current_stream": lambda device: Stream(name="current"),
        "stream": lambda stream: inside(stream.name),
        "device": lambda device: nullcontext(),
        "CUDAGraph": Graph,
        "graph": recording,
    }
    for name, stand_in in fake.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    loop = prefill(model, inputs, TopP(p=0.6), forced=True).loop(5)
    step, loop.device = loop.step, torch.device("cuda")
    logits = step._logits
    step._logits = lambda: calls.append("step") or logits()
    loop._replay = loop._record()
    assert calls == [
        *("side waits for current", "into side", "step", "step", "step", "out of side"),
        *("current waits for side", "into recording", "step", "out of recording"),
    ]
    assert step.cache.at.tolist() == [0, 0]
    assert torch.equal(made(loop, 5), right)


def test_buffers_are_freed_with_their_loop(model):
    """Without waiting for the garbage collector: a training step needs their memory next."""
    loop = prefill(model, batch([prompt("text", 20, 3)]), TopP(p=0.6), forced=True).loop(3)
    loop.advance(2)
    buffers = weakref.ref(loop.cache)
    gc.collect()
    gc.disable()
    try:
        del loop
        assert buffers() is None
    finally:
        gc.enable()
