"""Sparse against dense attention, one layer of Qwen2.5-VL-7B's shape, token ratio 0.25.

"Dense" is each kernel of PyTorch or flash-attn, by name; targets compare with the fastest one at
that shape. "Sparse" is what `sparsify` replaces it with: selection with the whole layout,
gathering, attention, scattering, and storing the kept K and V. It runs with the kernel chosen by
default, to which the targets apply, with flash, and with cuDNN at padded lengths. Decode replays a
recorded graph over several caches, because a single call takes less time than its launch and would
find its cache in L2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from table import Row, exact, interval
from torch import Tensor, nn
from transformers import AttentionInterface

from gpu_sections.measure import Times, by_kernel, gain, kernel_rows, rows_of, timed, timed_graphs
from gpu_sections.scale import RATIO, Scale
from sf.attention.backends import using_backend
from sf.attention.backends.cuda import CudaBackend
from sf.attention.cache import prune_in_place
from sf.attention.forward_state import ForwardState
from sf.attention.layer import sparse_attention
from sf.profiling.dense import OWN, accepted, candidates
from sf.selection import FixedMask, Probes, TopK

__all__ = ["caches", "quantities", "steps", "without_plans"]

PREFILL_TARGETS = {65536: 8.0, 131072: 10.0}
DECODE_TARGET = 3.5
SELECTION_SHARE = 0.2
RAGGED = (0.1, 0.2, 0.3, 0.4)  # what the rows of the ragged batch keep
BACKENDS = {
    "sparse": CudaBackend(),
    "sparse, flash": CudaBackend(uniform="flash"),
    "sparse, cuDNN": CudaBackend(uniform="cudnn"),
}
CUDNN = "SDPA cuDNN"


class Layer(nn.Module):
    """The attributes that an attention function reads from a model's attention module."""

    layer_idx, is_causal = 0, True
    config = SimpleNamespace(_attn_implementation="sdpa")

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """The prompts of the targets, the shorter one first."""
    plans = {f"prefill {length}": partial(prefill, scale, length) for length in scale.long}
    shortest = scale.long[0]
    return {
        **plans,
        f"ragged {scale.ragged}": lambda: ragged(scale),
        f"decode {scale.decode}": lambda: decode(scale),
        f"prefill {shortest} by kernel": lambda: kernels(scale, shortest),
    }


def without_plans(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """The prefill again, without cuDNN on either side."""
    return {
        f"prefill {length}": partial(prefill, scale, length, cudnn=False) for length in scale.long
    }


def quantities(scale: Scale, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value (B, ., L, D) with the strides that projections produce."""

    def part(heads: int) -> Tensor:
        shape = (rows, length, heads, scale.head_dim)
        return torch.randn(shape, dtype=scale.dtype, device=scale.at).transpose(1, 2)

    return part(scale.heads), part(scale.groups), part(scale.groups)


def caches(scale: Scale, entries: int) -> list[list[Tensor]]:
    """Several random caches of one row: key and value (1, G, entries, D)."""
    return [
        [part.contiguous() for part in quantities(scale, 1, entries)[1:]]
        for _ in range(scale.caches)
    ]


def dense_calls(
    scale: Scale, parts: tuple[Tensor, ...], cudnn: bool = True
) -> dict[str, Callable[[], Any]]:
    """Dense attention by each kernel that supports this shape; PyTorch's choice if none does."""
    calls: dict[str, Callable[[], Any]] = {}
    for path in [*candidates(), OWN]:
        if (path == OWN and calls) or (path.name == CUDNN and not cudnn):
            continue
        layer = Layer(scale.heads // scale.groups)
        layer.config = SimpleNamespace(_attn_implementation=path.implementation)
        attend = AttentionInterface()[path.implementation]
        call = partial(attend, layer, *parts, None, scaling=scale.head_dim**-0.5)
        if accepted(call, scale.at):
            calls[f"dense {path.name}"] = call
    return calls


def contenders(
    scale: Scale, calls: dict[str, Callable[[], Any]], within: float = 1.5
) -> dict[str, Callable[[], Any]]:
    """The dense kernels that come near the fastest one; timing others would waste the session."""
    once = timed(calls, scale, repeats=1)
    best = min(taken[0] for taken in once.values())
    return {name: call for name, call in calls.items() if once[name][0] <= within * best}


def quickest(times: Times) -> str:
    """The dense kernel with the smallest median."""
    return min((n for n in times if n.startswith("dense")), key=lambda n: median(times[n]))


class Prompt:
    """One prompt's sparse attention in one layer, as often as it is asked for.

    The layer is one in the middle of a forward: the forward's state exists, and with it what its
    layers share; the layer has not run, and its cache is empty.
    """

    def __init__(self, scale: Scale, length: int) -> None:
        self.parts = quantities(scale, 1, length)
        self.valid = torch.ones(1, length, dtype=torch.bool, device=scale.at)
        self.policy, self.scaling = TopK(ratio=RATIO), scale.head_dim**-0.5
        self._states: dict[int, tuple[Any, ForwardState]] = {}

    def plan(self, selector: Any) -> ForwardState:
        """The state before the layer."""
        if id(selector) not in self._states:
            made = ForwardState(kind="prefill", policy=selector, valid=self.valid)
            made.cache = prune_in_place(None, 1)
            self._states[id(selector)] = selector, made
        state = self._states[id(selector)][1]
        state.kept.clear()
        state._layout = None
        cached = state.cache_layer(0)
        assert cached is not None
        cached.reset()
        state.open_cache(True)
        cached.update(*self.parts[1:])
        return state

    def sparse(self, backend: CudaBackend, selector: Any) -> Any:
        """Selection, attention and the pruned cache."""
        with using_backend(backend):
            return sparse_attention(Layer(1), *self.parts, None, sparse_state=self.plan(selector))

    def select(self) -> Any:
        """Selection alone, up to the layout."""
        with using_backend(BACKENDS["sparse"]):
            return self.plan(self.policy).layout(*self.parts[:2], self.scaling, 0)


def kernels(scale: Scale, length: int) -> list[Row]:
    """Where a layer's time goes: the kernels of the default path, without gaps between them."""
    prompt = Prompt(scale, length)
    spent = by_kernel(partial(prompt.sparse, BACKENDS["sparse"], prompt.policy), scale.at)
    return kernel_rows(spent, f"prefill {length} sparse,", "a layer")


def prefill(scale: Scale, length: int, cudnn: bool = True) -> list[Row]:
    """One prompt: dense against sparse, and the parts of sparse."""
    prompt = Prompt(scale, length)
    policy, valid, scaling = prompt.policy, prompt.valid, prompt.scaling
    query, key, _ = prompt.parts
    with using_backend(BACKENDS["sparse"]):
        kept = prompt.plan(policy).choose(query, key, scaling, 0, BACKENDS["sparse"])
    probes = Probes().columns(valid)
    backends = {n: b for n, b in BACKENDS.items() if cudnn or b.uniform == "flash"}
    ours = next(iter(backends))
    variants: dict[str, Callable[[], Any]] = {
        **contenders(scale, dense_calls(scale, prompt.parts, cudnn)),
        **{name: partial(prompt.sparse, backend, policy) for name, backend in backends.items()},
        f"{ours}, chosen beforehand": partial(prompt.sparse, backends[ours], FixedMask([kept])),
        "selection": prompt.select,
        "probe scores": lambda: BACKENDS["sparse"].probe_mass(query, key, *probes, valid, scaling),
    }
    times = timed(variants, scale)
    label = f"prefill {length}" if cudnn else f"prefill {length} without cuDNN"
    base, target = quickest(times), PREFILL_TARGETS.get(length)
    share = [a / b for a, b in zip(times["selection"], times[ours], strict=True)]
    return [
        *rows_of(times, label),
        *(gain(times, label, name, base, target if name == ours else None) for name in backends),
        Row(f"{label} selection's share", *interval(share), "of sparse", SELECTION_SHARE, "lower"),
        exact(f"{label} token ratio", float(kept.float().mean()), "kept / length"),
    ]


def ragged(scale: Scale) -> list[Row]:
    """Prompts that keep different shares: one packed call, one call per prompt, dense."""
    parts, length = quantities(scale, len(RAGGED), scale.ragged), scale.ragged
    lengths = [round(share * length) for share in RAGGED]
    chance = torch.rand(len(RAGGED), length, device=scale.at)
    active = chance.argsort(-1) < torch.tensor(lengths, device=scale.at)[:, None]
    order = active.to(torch.uint8).argsort(dim=-1, stable=True)
    index = order[:, length - max(lengths) :]

    def sparse(how: Any) -> Callable[[], Any]:
        backend = CudaBackend(ragged=how)
        return lambda: backend.prefill(*parts, index, lengths, scale.head_dim**-0.5, 0.0)

    variants = {
        **contenders(scale, dense_calls(scale, parts)),
        "packed": sparse("packed"),
        "row by row": sparse("rows"),
    }
    times = timed(variants, scale)
    label, base = f"{len(RAGGED)} ragged rows of {length}, attention only,", quickest(times)
    gains = [gain(times, label, name, base) for name in ("packed", "row by row")]
    return [*rows_of(times, label), *gains]


def decode(scale: Scale) -> list[Row]:
    """One new token over the whole cache, the pruned one and a padded pruned one."""
    backend, scaling = BACKENDS["sparse"], scale.head_dim**-0.5
    count = round(RATIO * scale.decode)
    query = quantities(scale, 1, 1)[0]
    whole = caches(scale, scale.decode)
    pruned = [[part[:, :, :count].contiguous() for part in pair] for pair in whole]
    mask = (torch.arange(count, device=scale.at) >= 3)[None, None, None]

    def ours(pairs: list[list[Tensor]], seen: Tensor | None) -> list[Callable[[], Any]]:
        return [partial(backend.decode, query, *pair, seen, scaling) for pair in pairs]

    dense = [dense_calls(scale, (query, *pair)) for pair in whole]
    variants = {name: [calls[name] for calls in dense] for name in dense[0]} | {
        "dense, our kernel": ours(whole, None),
        "sparse": ours(pruned, None),
        "sparse, padded row": ours(pruned, mask),
    }
    times = timed_graphs(variants, scale)
    label = f"decode {scale.decode}"
    read = 2 * count * scale.groups * scale.head_dim * scale.dtype.itemsize
    rate = [read / taken / 1e9 for taken in times["sparse"]]
    return [
        *rows_of(times, label),
        gain(times, label, "sparse", quickest(times), DECODE_TARGET),
        gain(times, label, "sparse, padded row", quickest(times)),
        Row(f"{label} sparse, read", *interval(rate), "TB/s"),
    ]
