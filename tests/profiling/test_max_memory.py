"""The search for the largest values that fit, and what ends a trial."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sf.errors import ConfigError
from sf.profiling.dense import OWN, Dense, KeepAll
from sf.profiling.max_memory import fits, largest, memory_of
from sf.profiling.measurement import Settings, find_largest
from sf.profiling.models import SHAPES, LoadedModel, Shape, load_by_name
from sf.profiling.prompts import text_inputs
from sf.profiling.timing import attempt
from sf.selection import TopK


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 9, 100, 1000])
@pytest.mark.parametrize("start", [1, 4])
def test_it_finds_the_limit(limit: int, start: int) -> None:
    asked: list[int] = []

    def fit(value: int) -> bool:
        asked.append(value)
        return value <= limit

    result = largest(fit, start, 64)
    assert result.value == min(limit, 64)
    assert result.bounded == (limit >= 64)
    assert result.tries == len(asked) == len(set(asked))
    assert max(asked) <= 64
    assert min(asked) >= 1


def test_it_ends_within_a_share_of_the_limit() -> None:
    exact = largest(lambda value: value <= 77_777, 100, 10**6, step=100)
    coarse = largest(lambda value: value <= 77_777, 100, 10**6, step=100, within=0.05)
    assert exact.value == 77_700
    assert 0.95 * 77_777 <= coarse.value <= 77_777
    assert coarse.tries < exact.tries


def test_it_keeps_to_its_steps() -> None:
    asked: list[int] = []

    def fit(value: int) -> bool:
        asked.append(value)
        return value <= 777

    result = largest(fit, 100, 10_000, step=100)
    assert result.value == 700
    assert all(value % 100 == 0 for value in asked)


def test_a_search_needs_room() -> None:
    with pytest.raises(ConfigError, match="start, end, step"):
        largest(lambda value: True, 8, 4)


def test_an_attempt_tells_memory_from_other_faults() -> None:
    device = torch.device("cpu")
    assert attempt("nothing", lambda: None, device)
    assert not attempt("a lot", lambda: torch.empty(10**15), device)
    with pytest.raises(RuntimeError, match="shape"):
        attempt("nonsense", lambda: torch.ones(2, 3) @ torch.ones(2, 3), device)


def test_a_stated_limit_bounds_a_cpu() -> None:
    SHAPES["tiny"] = Shape(64, 2, 4, 2, 96, 256, True, "a test's")
    try:
        model = load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    finally:
        del SHAPES["tiny"]

    def inputs() -> dict[str, torch.Tensor]:
        return text_inputs(model, 1, 256, 0)

    weights = sum(part.nbytes for part in model.parameters())  # tied: listed once
    assert fits(model, KeepAll(), inputs, 1, weights + 20e6)
    assert not fits(model, KeepAll(), inputs, 1, weights + 0.1e6)  # its KV alone is 0.13 MB
    assert fits(model, KeepAll(), inputs, 1, None)
    with pytest.raises(ConfigError, match="memory_limit_gib"):
        memory_of(torch.device("cpu"), 0.0)
    with pytest.raises(ConfigError, match="the free memory"):
        memory_of(torch.device("cpu"), 1e9)
    assert memory_of(torch.device("cpu"), 0.5) == 2**29
    assert memory_of(torch.device("cuda"), 0.0) is None


def test_both_limits_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated memory that holds 1000 tokens of the full side and 4000 of the sparse one."""
    from sf.profiling import measurement

    asked: list[tuple[int, int]] = []

    def fake(model: Any, side: Any, inputs: Any, tokens: int, limit: Any) -> bool:
        batch, length = inputs()["input_ids"].shape
        asked.append((batch, length))
        return bool(batch * length <= (1000 if isinstance(side, Dense) else 4000))

    monkeypatch.setattr(measurement, "fits", fake)
    monkeypatch.setattr(measurement, "fastest", lambda model, batch, length: (OWN, {}))
    monkeypatch.setattr(
        measurement,
        "text_inputs",
        lambda model, batch, length, seed: {"input_ids": torch.empty(batch, length)},
    )
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    loaded = LoadedModel("made", model, "random", "")
    settings = Settings(
        (50, 100), TopK(ratio=0.25), "top-k", 3, 2, batch=2, find_largest=True, memory_limit_gib=0.1
    )
    lines = {(line["what"], line["side"]): line for line in find_largest(loaded, settings)}
    assert lines["length", "full"] | {"tries": 0} == {
        "model": "made", "side": "full", "what": "length", "batch": 2, "length": 500,
        "bounded": False, "tries": 0, "limit_gib": 0.1,
        "dense": OWN.name,
    }  # fmt: skip
    assert lines["length", "sparse"]["length"] == 2000
    assert (lines["batch", "full"]["batch"], lines["batch", "full"]["length"]) == (10, 100)
    assert lines["batch", "sparse"]["batch"] == 40
    assert all(length % 50 == 0 for _, length in asked)
