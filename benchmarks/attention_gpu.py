"""Sparse against dense attention on a CUDA device, one layer of Qwen2.5-VL-7B's shape, bf16.

"Dense" is the attention function that transformers runs for the model (SDPA, whose kernel PyTorch
chooses), "dense flash" the same with PyTorch's flash kernel. "Sparse" is what `sparsify` puts in
their place: selection, gathering, attention, scattering, storing the kept K and V (without what the
layers of a forward share: the probes' columns). Prefill is timed with device events around whole
calls, the host's share included. Decode is timed as the replay of a
recorded graph over several caches, since one call is shorter than its launch and would otherwise
find its cache in the L2. Every repeat runs all variants in a random order; a speed-up is the median
over repeats of dense / sparse within a repeat, with a 95 % bootstrap interval.

    python benchmarks/attention_gpu.py [--lengths 65536 131072] [--repeats 15] [--json FILE]
    python benchmarks/attention_gpu.py --tune        # tiles of the probe kernels
    TRITON_INTERPRET=1 python benchmarks/attention_gpu.py --device cpu --lengths 256 ...

The targets are meant for an H200. On a CPU the same code runs through Triton's interpreter, to see
that it runs; its times mean nothing.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import sf  # noqa: F401  (before transformers)

# isort: split
import torch
from attention import Times, rows_of, threshold_for
from table import Report, Row, arguments_parser, exact, interval
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from sf.attention.cache import prune_in_place
from sf.attention.forward_state import ForwardState
from sf.attention.layer import sparse_attention
from sf.profiling.clock import Clock
from sf.profiling.dense import accepted, candidates
from sf.selection import FixedMask, Probes, Scores, TopP, visible_probes

HEADS, GROUPS, SIZE, RATIO = 28, 4, 128, 0.25
SCALING = SIZE**-0.5
PREFILL_TARGETS = {65536: 8.0, 131072: 10.0}
DECODE_TARGETS = {131072: 3.5}
SELECTION_SHARE = 0.2
# Rows of the ragged batch keep these shares.
RAGGED = (0.1, 0.2, 0.3, 0.4)


class Layer(nn.Module):
    """What an attention function reads from a model's attention module."""

    layer_idx, is_causal, num_key_value_groups = 0, True, HEADS // GROUPS


def inputs(rows: int, length: int, heads: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """bf16 (B, H, L, D) tensors with the strides that projections of (B, L, H x D) give."""
    shape = (rows, length, -1, SIZE)
    return [
        torch.randn(rows, length, count * SIZE, dtype=torch.bfloat16, device=device)
        .view(shape)
        .transpose(1, 2)
        for count in heads
    ]


def timed(
    variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device, warm: int = 3
) -> Times:
    """Seconds of each variant in each repeat by device events, after `warm` rounds."""
    order, times, clock = list(variants), {name: [] for name in variants}, Clock(device)
    for repeat in range(warm + repeats):
        random.shuffle(order)
        for name in order:
            clock.synchronize()
            began = clock.mark()
            variants[name]()
            ended = clock.mark()
            clock.synchronize()
            if repeat >= warm:
                times[name].append(clock.ms(began, ended) / 1e3)
    return times


def other_dense(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], Any]]:
    """What else computes dense prefill attention here: cuDNN, flash-attn where it is installed."""
    found = {}
    for path in candidates():
        layer, attend = Layer(), AttentionInterface()[path.implementation]
        layer.config = SimpleNamespace(_attn_implementation=path.implementation)
        call = partial(attend, layer, query, key, value, None, scaling=SCALING)
        if path.name != "SDPA flash" and accepted(call, query.device):
            found[f"dense {path.name}"] = call
    return found


def dense_calls(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], Any]]:
    attend, layer = AttentionInterface()["sdpa"], Layer()

    def dense() -> Any:
        return attend(layer, query, key, value, None, scaling=SCALING)

    def flash() -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return dense()

    return {"dense": dense, "dense flash": flash}


def gains(times: Times, label: str, name: str, bases: dict[str, float | None]) -> list[Row]:
    """Speed-ups of one variant over others, each with its target."""
    table = []
    for base, target in bases.items():
        title = f"{name} over {base}"
        pair = {base: times[base], title: times[name]}
        table.append(rows_of(pair, base, label, {title: target})[-1])
    return table


def scores_of(backend: Any, query: Tensor, key: Tensor, valid: Tensor) -> Scores:
    column, present = Probes().columns(valid)
    mass = backend.probe_mass(query, key, column, present, valid, SCALING)
    visible = visible_probes(column, present, valid.shape[1])
    return Scores(mass=mass, visible=visible, num_probes=present.sum(-1), valid=valid)


def prefill(length: int, backend: Any, repeats: int, device: torch.device) -> list[Row]:
    """One row: dense against sparse, and the parts of sparse."""
    query, key, value = inputs(1, length, (HEADS, GROUPS, GROUPS), device)
    valid = torch.ones(1, length, dtype=torch.bool, device=device)
    scores = scores_of(backend, query, key, valid)
    policy = TopP(p=threshold_for(scores, round(RATIO * length)))
    probes = Probes().columns(valid)

    shared = ForwardState(kind="prefill", policy=policy, dense="sdpa", valid=valid)
    shared_parts = {name: getattr(shared, name) for name in ("_columns", "full_lengths")}

    def plan(selector: Any) -> ForwardState:
        made = ForwardState(kind="prefill", policy=selector, dense="sdpa", valid=valid)
        vars(made).update(shared_parts)
        made.cache = prune_in_place(None, 1)
        made.open_cache(True)
        made.cache.update(key, value, 0)
        return made

    layer = Layer()

    def sparse(selector: Any) -> Any:
        return sparse_attention(layer, query, key, value, None, sparse_state=plan(selector))

    kept = plan(policy).choose(query, key, SCALING, 0, backend)
    variants = {
        **dense_calls(query, key, value),
        **other_dense(query, key, value),
        "sparse": lambda: sparse(policy),
        "sparse, chosen beforehand": lambda: sparse(FixedMask([kept])),
        "selection": lambda: plan(policy).choose(query, key, SCALING, 0, backend),
        "probe scores": lambda: backend.probe_mass(query, key, *probes, valid, SCALING),
        "top-p": lambda: policy.keep(scores, 0),
    }
    times = timed(variants, repeats, device)
    label = f"prefill {length}"
    table = rows_of(times, "", label, {})
    table += gains(times, label, "sparse", {"dense flash": PREFILL_TARGETS.get(length)})
    quickest = min((n for n in times if n.startswith("dense")), key=lambda n: median(times[n]))
    table += gains(times, label, "sparse", dict.fromkeys({"dense", quickest}))
    share = [a / b for a, b in zip(times["selection"], times["sparse"], strict=True)]
    ratio = float(kept.float().mean())
    return [
        *table,
        Row(f"{label} selection's share", *interval(share), "of sparse", SELECTION_SHARE, "lower"),
        *_memory(label, variants["probe scores"], device),
        exact(f"{label} token ratio", ratio, "kept / length"),
    ]


def _memory(label: str, call: Callable[[], Any], device: torch.device) -> list[Row]:
    """What the probe scores need at their peak above what was there; on CUDA alone."""
    if device.type != "cuda":
        return []
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    mebibytes = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return [exact(f"{label} probe scores, memory", mebibytes, "MiB")]


def ragged(length: int, repeats: int, device: torch.device) -> list[Row]:
    """Rows that keep different shares: one packed call, a call per row, dense."""
    from sf.attention.backends.cuda import CudaBackend

    query, key, value = inputs(len(RAGGED), length, (HEADS, GROUPS, GROUPS), device)
    lengths = [round(share * length) for share in RAGGED]
    chance = torch.rand(len(RAGGED), length, device=device)
    active = chance.argsort(-1) < torch.tensor(lengths, device=device)[:, None]
    order = active.to(torch.uint8).argsort(dim=-1, stable=True)
    index = order[:, length - max(lengths) :]

    def sparse(how: Any) -> Callable[[], Any]:
        backend = CudaBackend(ragged=how)
        return lambda: backend.prefill(query, key, value, index, lengths, SCALING, 0.0)

    variants = {
        **dense_calls(query, key, value),
        "packed": sparse("packed"),
        "row by row": sparse("rows"),
    }
    times = timed(variants, repeats, device)
    label = f"{len(RAGGED)} ragged rows of {length}, attention only,"
    over = [gains(times, label, name, {"dense flash": None}) for name in ("packed", "row by row")]
    return [*rows_of(times, "", label, {}), *over[0], *over[1]]


def recorded(calls: list[Callable[[], Any]], device: torch.device) -> Callable[[], Any]:
    """A replay of all calls as one graph; on a CPU the calls themselves."""

    def together() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return together
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        together()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        together()
    return graph.replay


def decode(
    length: int, backend: Any, repeats: int, device: torch.device, caches: int = 8
) -> list[Row]:
    """One new token over the whole cache, over the pruned one, and over a padded pruned one."""
    count = round(RATIO * length)
    query = inputs(1, 1, (HEADS,), device)[0]
    whole = [
        [t.contiguous() for t in inputs(1, length, (GROUPS, GROUPS), device)] for _ in range(caches)
    ]
    pruned = [[part[:, :, :count].contiguous() for part in pair] for pair in whole]
    mask = (torch.arange(count, device=device) >= 3)[None, None, None]
    dense = [dense_calls(query, *pair) for pair in whole]

    def sparse(pair: list[Tensor], seen: Tensor | None) -> Callable[[], Any]:
        return lambda: backend.decode(query, *pair, seen, SCALING)

    variants = {name: recorded([calls[name] for calls in dense], device) for name in dense[0]}
    variants["sparse"] = recorded([sparse(pair, None) for pair in pruned], device)
    variants["sparse, padded row"] = recorded([sparse(pair, mask) for pair in pruned], device)
    times = timed(variants, repeats, device)
    times = {name: [t / caches for t in spent] for name, spent in times.items()}
    label = f"decode {length}"
    target = DECODE_TARGETS.get(length)
    table = rows_of(times, "", label, {})
    table += gains(times, label, "sparse", {"dense": target, "dense flash": target})
    table += gains(times, label, "sparse, padded row", {"dense flash": None})
    read = 2 * count * GROUPS * SIZE * 2 / 1e12
    rate = [read / t for t in times["sparse"]]
    return [*table, Row(f"{label} sparse, read", *interval(rate), "TB/s")]


def tune(length: int, repeats: int, device: torch.device) -> list[Row]:
    """Times of the probe kernels by tile; "in use" is what `tiles_for` gives."""
    from sf.attention.kernels.probe_scores import probe_mass
    from sf.attention.kernels.tiles import Tiles, shared_memory, tiles_for

    query, key = inputs(1, length, (HEADS, GROUPS), device)
    valid = torch.ones(1, length, dtype=torch.bool, device=device)
    column, present = Probes().columns(valid)
    in_use = tiles_for(SIZE, torch.bfloat16, shared_memory(query.device))
    choices = {
        Tiles(rows, keys, warps, stages)
        for rows in (64, 128)
        for keys in (64, 128)
        for warps in (4, 8)
        for stages in (2, 3)
    }
    variants = {}
    for tiles in sorted(choices | {in_use}, key=str):
        note = " (in use)" if tiles == in_use else ""
        name = f"rows {tiles.rows} keys {tiles.keys} warps {tiles.warps} stages {tiles.stages}"
        variants[name + note] = lambda tiles=tiles: probe_mass(
            query, key, column, present, valid, SCALING, tiles
        )
    return rows_of(timed(variants, repeats, device), "", f"probe scores {length}", {})


def main() -> None:
    """Measure, print a table, write it as JSON where asked."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=[16384, 65536, 131072])
    parser.add_argument("--decode-lengths", type=int, nargs="*", default=[32768, 131072])
    parser.add_argument("--ragged-lengths", type=int, nargs="*", default=[16384])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tune", action="store_true", help="only compare tiles")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("attention_gpu.py: no CUDA device is visible to PyTorch; run it on a GPU machine")
    from sf.attention.backends.cuda import CudaBackend

    device, backend = torch.device(arguments.device), CudaBackend()
    torch.manual_seed(0)
    random.seed(0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, dry run"
    head = f"{name}, torch {torch.__version__}, {arguments.repeats} repeats"
    report = Report(head, arguments.json)
    if arguments.tune:
        plans = [(tune, arguments.lengths)]
    else:
        plans = [
            (partial(prefill, backend=backend), arguments.lengths),
            (ragged, arguments.ragged_lengths),
            (partial(decode, backend=backend), arguments.decode_lengths),
        ]
    with torch.inference_mode():
        for measured, lengths in plans:
            for length in lengths:
                what = getattr(measured, "func", measured).__name__
                report.begin(f"{what} {length}")
                report.add(measured(length, repeats=arguments.repeats, device=device))
    report.end()


if __name__ == "__main__":
    main()
