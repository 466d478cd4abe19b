"""Throughput of the server's engine against concurrency, for sparse and full attention.

A model of a quarter of Qwen2.5-VL-3B's width, random weights, prompts of random text, token ratio
0.25 by top-k. At each concurrency, that many clients send one request after the other; each repeat
runs both sides in alternating order, and ratios are taken within a repeat, with a 95 % bootstrap
interval.

    python benchmarks/serving.py [--concurrency 1 2 4 8 16] [--length 4096] [--json FILE]
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import sf  # noqa: F401  (before transformers)

# isort: split
import torch
from table import Report, Row, arguments_parser, interval

from sf.attention.decoding.per_row import RowRules
from sf.baselines import build
from sf.profiling.models import load_by_name
from sf.profiling.prompts import text_inputs
from sf.serving import Engine
from sf.serving.engine import Request

SHAPE, RATIO = "qwen2.5-vl-3b-quarter", 0.25


def throughput(engine: Engine, prompts: list[Any], clients: int, tokens: int) -> float:
    """Generated tokens per second; the time includes the prompts."""
    waiting, lock = list(prompts), threading.Lock()
    made, failures = [0], list[Exception]()

    def client() -> None:
        while True:
            with lock:
                if not waiting or failures:
                    return
                inputs = waiting.pop()
            done = threading.Event()

            def got(new: list[int], ended: bool, done: threading.Event = done) -> bool:
                with lock:
                    made[0] += len(new)
                if ended:
                    done.set()
                return True

            def failed(error: Exception, done: threading.Event = done) -> None:
                failures.append(error)
                done.set()

            engine.submit(Request(inputs, tokens, RowRules(), lambda _: None, got, failed))
            done.wait()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return made[0] / (time.perf_counter() - began)


def named(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def rows(clients: int, arguments: argparse.Namespace, model: Any) -> list[Row]:
    """Tokens per second of both sides at one concurrency, and their ratio."""
    count = clients * arguments.rounds
    prompts = [text_inputs(model, 1, arguments.length, seed) for seed in range(count)]
    sides = {"full": build("full"), "sparse": build("top_k", RATIO)}
    engines = {
        name: Engine(model, method, clients, arguments.tokens) for name, method in sides.items()
    }
    for engine in engines.values():
        throughput(engine, prompts[:1], 1, arguments.tokens)  # warm
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(arguments.repeats):
        for name in sides if repeat % 2 else reversed(sides):
            rates[name].append(throughput(engines[name], prompts, clients, arguments.tokens))
    for engine in engines.values():
        engine.stop()
    label = f"{named(clients)}, {arguments.length} tokens"
    pairs = zip(rates["sparse"], rates["full"], strict=True)
    gains = interval([sparse / full for sparse, full in pairs])
    return [
        *(Row(f"{label}, {name}", *interval(rates[name]), "tokens/s") for name in sides),
        Row(f"{label}, sparse over full", *gains, "x", 1.0, "higher"),
    ]


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2, help="questions of each client")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", default=SHAPE)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_by_name(arguments.shape, Path(), "float32", "cpu", seed=0).model
    head = f"cpu, {arguments.threads} threads, {arguments.repeats} repeats"
    report = Report(head, arguments.json)
    for clients in arguments.concurrency:
        report.begin(named(clients))
        report.add(rows(clients, arguments, model))
    report.end()


if __name__ == "__main__":
    main()
