"""The dense side is the fastest dense attention available, and names it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from sf.profiling import dense
from sf.profiling.dense import Dense, DensePath, KeepAll, candidates, fastest, using
from sf.profiling.generation import Workload
from sf.profiling.measurement import DENSE, Settings, point
from sf.profiling.models import SHAPES, LoadedModel, Shape, load_by_name
from sf.profiling.prompts import text_inputs
from sf.profiling.roofline import Ceilings
from sf.profiling.timing import measure
from sf.selection import TopK

SLOW, QUICK = DensePath("slow", "test_slow"), DensePath("quick", "test_quick")


@pytest.fixture(scope="module")
def model() -> Any:
    SHAPES["tiny"] = Shape(64, 3, 4, 2, 96, 256, True, "a test's")
    try:
        return load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    finally:
        del SHAPES["tiny"]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two dense attentions, one slower by 20 ms a layer; the names under which they were called."""
    seen: list[str] = []

    def slow(module: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return quick(module, *args, **kwargs)

    def quick(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.config._attn_implementation)
        return AttentionInterface()["sdpa"](module, *args, **kwargs)

    for path, attend in ((SLOW, slow), (QUICK, quick)):
        AttentionInterface.register(path.implementation, attend)
        AttentionMaskInterface.register(path.implementation, AttentionMaskInterface()["sdpa"])
    monkeypatch.setattr(dense, "candidates", lambda: [SLOW, QUICK])
    return seen


def test_the_fastest_path_is_found_by_timing(model: Any, two: list[str]) -> None:
    path, times = fastest(model, 1, 32)
    assert path == QUICK
    assert set(times) == {"slow", "quick"}
    assert times["slow"] >= 20.0 > times["quick"]


def test_every_line_says_which_path_it_was(model: Any, two: list[str]) -> None:
    settings = Settings((64,), TopK(ratio=0.25), "top-k", 3, 2)
    loaded = LoadedModel("made", model, "random", "")
    measured = point(loaded, 64, settings, Ceilings(1e10, 1e10))
    assert {line["dense"] for line in measured["lines"] + measured["speedups"]} == {"quick"}
    table = pd.DataFrame(measured["dense"], columns=list(DENSE)).set_index("path")
    assert table["chosen"].to_dict() == {"slow": False, "quick": True}
    assert table.loc["slow", "layer_ms"] >= 20.0


def test_a_path_runs_in_every_layer_under_its_own_name(model: Any, two: list[str]) -> None:
    """transformers' flash attention loads the package that the configuration names."""
    inputs = text_inputs(model, 1, 32, 0)
    runs = measure(Workload(model, inputs, 2), {"full": Dense(QUICK)}, repeats=1)
    assert two == ["test_quick"] * len(two)
    assert len(two) == 3 * (1 + 1)  # layers x prefills: the peak's and the timed one
    assert model.get_decoder().config._attn_implementation == "sdpa"
    # Nothing is chosen among and nothing scored.
    assert runs["full"].parts_ms["selection"] == [0.0]
    assert runs["full"].token_ratio == 1.0


def test_paths_give_the_models_own_tokens(model: Any) -> None:
    inputs = text_inputs(model, 2, 32, 0)
    inputs["attention_mask"][0, :5] = 0  # a padded row
    given = {**inputs, "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(**given)
    with Dense().apply(model) as trace:
        assert torch.equal(model.generate(**given), plain)
    assert trace.token_ratio.tolist() == [1.0, 1.0]
    path, times = fastest(model, 1, 32)
    assert (path.name, times) == ("SDPA flash", {})  # the one kernel of a CPU: no race
    unpadded = {key: value[1:] for key, value in inputs.items()} | {"max_new_tokens": 6}
    with Dense(path).apply(model):
        assert torch.equal(model.generate(**unpadded, do_sample=False)[0], plain[1])


def test_kernels_that_do_not_run_here_are_left_out_and_other_errors_are_not(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {path.name: dense._runs(model, path, 1, 32) for path in candidates()}
    assert names["SDPA flash"]
    assert not names["SDPA cuDNN"]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("an illegal memory access")

    AttentionInterface.register("test_broken", broken)
    path = DensePath("broken", "test_broken")
    monkeypatch.setattr(dense, "candidates", lambda: [path])
    with pytest.raises(RuntimeError, match="illegal"):
        fastest(model, 1, 32)
    assert model.get_decoder().config._attn_implementation == "sdpa"


def test_flash_attn_is_a_candidate_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in candidates()}
    monkeypatch.setitem(dense.PACKAGES, "flash-attn 2", ("flash_attention_2", lambda: True))
    assert DensePath("flash-attn 2", "flash_attention_2") in candidates()
    assert "flash-attn 2" not in before or torch.cuda.is_available()


def test_using_gives_the_model_back_after_an_error(model: Any) -> None:
    def fail() -> None:
        with using(model, QUICK):
            assert model.get_decoder().config._attn_implementation == "test_quick"
            raise KeyError

    AttentionInterface.register("test_quick", AttentionInterface()["sdpa"])
    with pytest.raises(KeyError):
        fail()
    assert model.get_decoder().config._attn_implementation == "sdpa"


def test_keeping_all_is_not_asked_layer_by_layer(model: Any) -> None:
    class Counting(KeepAll):
        def keep(self, scores: Any, layer: int) -> Any:
            raise AssertionError

    work = Workload(model, text_inputs(model, 1, 32, 0), 2)
    assert measure(work, {"full": Counting()}, repeats=1)["full"].kv_bytes > 0
