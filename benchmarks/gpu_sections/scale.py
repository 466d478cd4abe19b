"""Sizes of a session: the real one, and a rehearsal that takes a minute on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sf.profiling.models import SHAPES, Shape

__all__ = ["FULL", "REHEARSAL", "Scale"]

RATIO = 0.25
SHAPES["rehearsal"] = Shape(64, 2, 4, 2, 96, 256, True, "2 layers of a rehearsal")


@dataclass(frozen=True)
class Scale:
    """What is measured at which size.

    Attributes:
        shape: of the whole model, a key of `SHAPES`.
        heads, groups, head_dim: of one layer's attention.
        long: prompts of the targets, ascending.
        plans: new lengths that each SDPA kernel meets, and the first of them.
        ragged: columns of the rows that keep different shares.
        decode: entries of a dense cache in the decode kernels.
        top_p: prompt whose layers keep different counts.
        prefills: prompts of the whole model. memory: lengths whose KV bytes are counted.
        throughput: the published length. rollout_prompt: of the rollout engine's rows.
        batches: of the rollout engine.
        tokens: of a timed decode loop.
        repeats: of short measurements. long_repeats: of a whole prefill. loop_repeats: of a batch's
            decode loop.
        warm: untimed rounds before them. caches: that a recorded decode walks through.
        most_rows: of a batch that fits.
        train_steps: after warming up.
    """

    device: str
    dtype: torch.dtype
    shape: str
    heads: int
    groups: int
    head_dim: int
    long: tuple[int, ...]
    plans: tuple[int, int]
    ragged: int
    decode: int
    top_p: int
    prefills: tuple[int, ...]
    memory: tuple[int, ...]
    throughput: int
    rollout_prompt: int
    batches: tuple[int, ...]
    tokens: int
    repeats: int
    long_repeats: int
    loop_repeats: int
    warm: int
    caches: int
    most_rows: int
    train_steps: int

    @property
    def rehearsal(self) -> bool:
        """Whether the figures are meaningless."""
        return self.device == "cpu"

    @property
    def patience(self) -> float:
        """Factor on every time limit, because a rehearsal's machine may be slow and busy."""
        return 4.0 if self.rehearsal else 1.0

    @property
    def at(self) -> torch.device:
        """The device with its index."""
        return torch.device("cpu") if self.rehearsal else torch.device("cuda", 0)


FULL = Scale(
    device="cuda",
    dtype=torch.bfloat16,
    shape="qwen2.5-vl-7b",
    heads=28,
    groups=4,
    head_dim=128,
    long=(65536, 131072),
    plans=(20, 12345),
    ragged=16384,
    decode=131072,
    top_p=32768,
    prefills=(65536, 131072, 16384, 32768),
    memory=(32768, 65536, 131072, 200_000),
    throughput=200_000,
    rollout_prompt=4096,
    batches=(8, 32, 64),
    tokens=64,
    repeats=7,
    long_repeats=2,
    loop_repeats=3,
    warm=2,
    caches=8,
    most_rows=256,
    train_steps=4,
)
REHEARSAL = Scale(
    device="cpu",
    dtype=torch.float32,
    shape="rehearsal",
    heads=2,
    groups=1,
    head_dim=16,
    long=(96, 128),
    plans=(2, 33),
    ragged=64,
    decode=1040,
    top_p=64,
    prefills=(64, 48),
    memory=(64, 96),
    throughput=96,
    rollout_prompt=48,
    batches=(2, 3),
    tokens=3,
    repeats=1,
    long_repeats=1,
    loop_repeats=1,
    warm=0,
    caches=1,
    most_rows=3,
    train_steps=1,
)
