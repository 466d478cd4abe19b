"""Sparse against dense attention in one layer of Qwen2.5-VL-3B's shape.

Each repeat runs all variants in random order under the same load. A speed-up is the median over
repeats of dense time / sparse time within a repeat, with a 95 % bootstrap interval. "Dense" is the
attention function that transformers uses for the model (SDPA). "Sparse" is what `sparsify`
replaces it with: selection (probe scores, top-p), gathering, attention, scattering, and storing the
kept K and V. The inputs are random; p is set so that the requested token ratio is kept.

    python benchmarks/attention.py [--lengths 8192 16384] [--repeats 7] [--json FILE]

On a shared machine, `--threads 1 --clock cpu` measures the CPU time of the process.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import sf  # noqa: F401  (before transformers: it lets torchvision import beside a CPU-only torch)

# isort: split
import torch
from table import Report, Row, arguments_parser, exact, interval
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen2Config, Qwen2Model

from sf import TopK, sparsify
from sf.attention.backends import backend_for
from sf.attention.cache import PrunedLayer, prune_in_place
from sf.attention.forward_state import ForwardState
from sf.attention.layer import sparse_attention
from sf.selection import FixedMask, Scores, TopP

HEADS, KV_HEADS, SIZE, RATIO = 16, 2, 128, 0.25
PREFILL_TARGETS = {8192: 7.0, 16384: 9.5}
DECODE_TARGETS = {32768: 3.5}
Times = dict[str, list[float]]


class Layer(nn.Module):
    """The attributes that an attention function reads from a model's attention module."""

    layer_idx, is_causal, num_key_value_groups = 0, True, HEADS // KV_HEADS
    config = SimpleNamespace(_attn_implementation="sdpa")


def inputs(queries: int, keys: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Random q, k and v with the strides that projections of (1, L, H x D) produce."""
    counts = ((queries, HEADS), (keys, KV_HEADS), (keys, KV_HEADS))
    shapes = [(1, length, heads, SIZE) for length, heads in counts]
    return tuple(torch.randn(s, dtype=dtype, device=device).transpose(1, 2) for s in shapes)


def interleaved(variants: dict[str, Callable[[], Any]], arguments: argparse.Namespace) -> Times:
    """Seconds of each variant in each repeat, after one warm-up repeat."""
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    device = arguments.device
    order, times = list(variants), {name: [] for name in variants}
    for repeat in range(arguments.repeats + 1):
        random.shuffle(order)
        for name in order:
            if device == "cuda":
                torch.cuda.synchronize()
            began = clock()
            variants[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[name].append(clock() - began)
    return times


def rows_of(times: Times, base: str, label: str, targets: dict[str, float | None]) -> list[Row]:
    """Times of all variants, and speed-ups over `base` for those in `targets`."""
    table = [
        Row(f"{label} {name}", *interval([1e3 * t for t in spent]), "ms")
        for name, spent in times.items()
    ]
    for name, target in targets.items():
        gains = [dense / sparse for dense, sparse in zip(times[base], times[name], strict=True)]
        table.append(Row(f"{label} {name} speed-up", *interval(gains), "x", target, "higher"))
    return table


def retention_p_for(scores: Scores, count: int) -> float:
    """The `retention_p` at which top-p keeps `count` tokens."""
    held = scores.mass[0].double().sort(descending=True).values.cumsum(0)
    return float((held[count - 1] + held[count - 2]) / 2 / scores.num_probes[0])


def prefill(length: int, arguments: argparse.Namespace) -> list[Row]:
    """Dense against sparse prefill, and the parts of the sparse one."""
    query, key, value = inputs(length, length, arguments.dtype, arguments.device)
    module, scaling = Layer(), SIZE**-0.5
    backend, dense = backend_for(query.device), AttentionInterface()["sdpa"]
    valid = torch.ones(1, length, dtype=torch.bool, device=arguments.device)
    first = ForwardState(kind="prefill", policy=TopP(p=0.5), valid=valid)
    column, present, visible = first._columns
    mass = backend.probe_mass(query, key, column, present, valid, scaling)
    scores = Scores(mass=mass, visible=visible, num_probes=present.sum(-1), valid=valid)
    policy = TopP(p=retention_p_for(scores, round(RATIO * length)))

    def plan(selector: Any) -> ForwardState:
        made = ForwardState(kind="prefill", policy=selector, valid=valid)
        made.cache = prune_in_place(None, 1)
        made.open_cache(True)
        made.cache.update(key, value, 0)
        return made

    kept = plan(policy).choose(query, key, scaling, 0, backend)

    def sparse(selector: Any) -> Tensor:
        return sparse_attention(module, query, key, value, None, sparse_state=plan(selector))[0]

    variants: dict[str, Callable[[], Any]] = {
        "dense": lambda: dense(module, query, key, value, None, scaling=scaling),
        "sparse": lambda: sparse(policy),
        "selection alone": lambda: plan(policy).choose(query, key, scaling, 0, backend),
        "sparse, chosen beforehand": lambda: sparse(FixedMask([kept])),
    }
    times = interleaved(variants, arguments)
    label = f"prefill {length}"
    target = PREFILL_TARGETS.get(length) if arguments.device == "cpu" else None
    table = rows_of(times, "dense", label, {"sparse": target, "sparse, chosen beforehand": None})
    share = [a / b for a, b in zip(times["selection alone"], times["sparse"], strict=True)]
    table.append(Row(f"{label} selection's share", *interval(share), "of sparse"))
    ratio = float(kept.float().mean())
    return [*table, exact(f"{label} token ratio", ratio, "kept / length")]


def model_prefill(length: int, arguments: argparse.Namespace) -> list[Row]:
    """A decoder layer of Qwen2.5-VL-3B's shape, with MLP and projections, on an empty cache."""
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=HEADS * SIZE,
        intermediate_size=11008,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=length,
    )
    model = Qwen2Model(config).eval().to(arguments.device, arguments.dtype)
    ids = torch.randint(0, 64, (1, length), device=arguments.device)

    def run(**options: Any) -> None:
        with sparsify(model, TopK(ratio=RATIO), **options):
            model(input_ids=ids, use_cache=True)

    variants: dict[str, Callable[[], Any]] = {
        "dense": lambda: model(input_ids=ids, use_cache=True),
        "sparse, all projections": lambda: run(skip_dropped=False),
        "sparse": run,
    }
    times = interleaved(variants, arguments)
    label = f"layer prefill {length}"
    table = rows_of(times, "dense", label, {"sparse, all projections": None, "sparse": None})
    pairs = zip(times["sparse, all projections"], times["sparse"], strict=True)
    saved = [1 - lean / full for full, lean in pairs]
    return [*table, Row(f"{label} saved by skipping projections", *interval(saved), "of sparse")]


def decode(length: int, arguments: argparse.Namespace) -> list[Row]:
    """One new token over the whole and the pruned cache, with and without the cache update."""
    query, _, _ = inputs(1, 1, arguments.dtype, arguments.device)
    _, key, value = inputs(1, length, arguments.dtype, arguments.device)
    module, scaling = Layer(), SIZE**-0.5
    backend, dense = backend_for(query.device), AttentionInterface()["sdpa"]
    count = round(RATIO * length)
    few_key, few_value = (part[:, :, :count].contiguous() for part in (key, value))
    key, value = key.contiguous(), value.contiguous()
    new_key, new_value = (torch.randn_like(key[:, :, :1]) for _ in range(2))
    layer = PrunedLayer()
    layer.active = True
    layer.update(key, value)
    layer.commit(few_key, few_value, length, 0, None)

    def dense_step() -> Tensor:
        # A DynamicCache copies the whole cache at each step.
        keys, values = (torch.cat(pair, -2) for pair in ((key, new_key), (value, new_value)))
        return dense(module, query, keys, values, None, scaling=scaling)[0]

    def sparse_step() -> Tensor:
        keys, values = layer.update(new_key, new_value)
        return backend.decode(query, keys, values, None, scaling)

    def many(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [run() for _ in range(arguments.decode_steps)]

    variants = {
        "dense": many(lambda: dense(module, query, key, value, None, scaling=scaling)),
        "dense, KV heads not copied": many(
            lambda: backend.decode(query, key, value, None, scaling)
        ),
        "sparse": many(lambda: backend.decode(query, few_key, few_value, None, scaling)),
        "dense with its cache": many(dense_step),
        "sparse with its cache": many(sparse_step),
    }
    times = interleaved(variants, arguments)
    times = {name: [t / arguments.decode_steps for t in spent] for name, spent in times.items()}
    label = f"decode {length}"
    target = DECODE_TARGETS.get(length) if arguments.device == "cpu" else None
    table = rows_of(times, "dense", label, {"sparse": target})
    shared = [
        whole / few
        for whole, few in zip(times["dense, KV heads not copied"], times["sparse"], strict=True)
    ]
    label_shared = f"{label} sparse speed-up over dense, KV heads not copied"
    table.append(Row(label_shared, *interval(shared), "x", None, "higher"))
    pair = {name: times[name] for name in ("dense with its cache", "sparse with its cache")}
    gains = rows_of(pair, "dense with its cache", label, {"sparse with its cache": None})
    return [*table, gains[-1]]


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=[8192, 16384])
    parser.add_argument("--model-lengths", type=int, nargs="*", default=[2048])
    parser.add_argument("--decode-lengths", type=int, nargs="*", default=[32768])
    parser.add_argument("--decode-steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    arguments = parser.parse_args()
    arguments.dtype = getattr(torch, arguments.dtype)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    how = f"{arguments.device}, {arguments.threads} threads, {arguments.clock} clock"
    report = Report(f"{how}, {arguments.repeats} repeats", arguments.json)
    with torch.inference_mode():
        for measured, lengths in (
            (prefill, arguments.lengths),
            (model_prefill, arguments.model_lengths),
            (decode, arguments.decode_lengths),
        ):
            for length in lengths:
                report.begin(f"{measured.__name__} {length}")
                report.add(measured(length, arguments))
    report.end()


if __name__ == "__main__":
    main()
