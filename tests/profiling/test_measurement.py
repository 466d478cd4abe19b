"""Measured points, from one model up to the stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch

from sf.errors import ConfigError
from sf.profiling.breakdown import PARTS, Parts, watched
from sf.profiling.clock import Clock
from sf.profiling.dense import KeepAll
from sf.profiling.generation import Workload
from sf.profiling.measurement import Settings, least_bytes, point
from sf.profiling.models import SHAPES, LoadedModel, Shape, load_by_name
from sf.profiling.prompts import prompt_ids, text_inputs
from sf.profiling.roofline import Ceilings
from sf.profiling.timing import measure
from sf.selection import Policy, Scores, TopK

TINY = Shape(64, 2, 4, 2, 96, 256, True, "a test's")
LENGTH = 96
LIMITS = Ceilings(1e10, 1e10)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """Random weights of a tiny shape."""
    SHAPES["tiny"] = TINY
    try:
        return load_by_name("tiny", Path(), "float32", "cpu", seed=0)
    finally:
        del SHAPES["tiny"]


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Three repeats of four tokens."""
    return Settings((LENGTH,), TopK(ratio=0.25), "top-k 0.25", repeats=3, decode_tokens=4)


def test_a_point_counts_the_cache_exactly(loaded: LoadedModel, settings: Any) -> None:
    lines = pd.DataFrame(point(loaded, LENGTH, settings, LIMITS)["lines"])
    sizes = lines[lines["metric"] == "kv_bytes"].set_index("side")["value"]
    per_token = 2 * 2 * 2 * 16 * 4  # layers, K and V, heads, channels, bytes
    # transformers holds prompt and four tokens; the growing cache reserves 64 places for them.
    assert sizes["transformers"] == per_token * (LENGTH + 4)
    assert sizes["full"] == per_token * (LENGTH + 64)
    ratios = lines.drop_duplicates("side").set_index("side")["token_ratio"]
    assert sizes["sparse"] == pytest.approx(per_token * (ratios["sparse"] * LENGTH + 64))
    assert ratios["full"] == 1.0
    assert 0.25 <= ratios["sparse"] <= 0.25 + 1 / LENGTH  # the last token is always kept
    assert set(lines["ratio_set_by"]) == {"top-k 0.25"}
    assert set(lines["weights"]) == {"random"}


def test_parts_add_up_to_prefill(loaded: LoadedModel, settings: Any) -> None:
    lines = pd.DataFrame(point(loaded, LENGTH, settings, LIMITS)["lines"])
    runs = measure(
        Workload(loaded.model, text_inputs(loaded.model, 1, LENGTH, 0), 2),
        {"full": KeepAll(), "sparse": TopK(ratio=0.25)},
        repeats=3,
    )
    for run in runs.values():
        assert set(run.parts_ms) == set(PARTS)
        for repeat, total in enumerate(run.prefill_ms):
            parts = [run.parts_ms[name][repeat] for name in PARTS]
            assert sum(parts) == pytest.approx(total)
            assert min(parts) >= 0
        assert len(run.step_ms) == 3
    assert {f"prefill_{name}_ms" for name in PARTS} <= set(lines["metric"])


def test_nested_parts_are_counted_once() -> None:
    marks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 20.0])
    clock: Any = SimpleNamespace(mark=lambda: next(marks), ms=lambda begin, end: end - begin)
    parts = Parts(clock)
    parts.start("attention")  # 0
    parts.start("selection")  # 1
    parts.start("projections")  # 3
    parts.stop()  # 6
    parts.stop()  # 10
    parts.stop()  # 20
    assert parts.milliseconds(25.0) == {
        "projections": 3.0,
        "vision": 0.0,
        "selection": 6.0,
        "attention": 11.0,
        "pruning": 0.0,
        "mlp": 0.0,
        "other": 5.0,
    }


def test_watching_leaves_nothing_behind(loaded: LoadedModel) -> None:
    from sf.attention import PrunedLayer
    from sf.attention.forward_state import ForwardState

    before, commit = ForwardState.choose, PrunedLayer.commit
    with watched(loaded.model, Clock(torch.device("cpu"))):
        assert ForwardState.choose is not before
        assert PrunedLayer.commit is not commit
    work = Workload(loaded.model, text_inputs(loaded.model, 1, LENGTH, 0), 2)
    with pytest.raises(KeyError):
        measure(work, {"full": Broken()}, repeats=1)
    assert ForwardState.choose is before
    assert PrunedLayer.commit is commit
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_the_dense_side_gives_the_tokens_of_plain_generate(loaded: LoadedModel) -> None:
    from sf.attention import sparsify

    ids = prompt_ids(loaded.model, 1, LENGTH, 3)
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    plain = loaded.model.generate(ids, **given)
    with sparsify(loaded.model, KeepAll()):
        dense = loaded.model.generate(ids, **given)
    assert torch.equal(plain, dense)


@dataclass(frozen=True)
class Broken(Policy):
    """Fails in the middle of a forward pass."""

    def keep(self, scores: Scores, layer: int) -> torch.Tensor:
        raise KeyError


@dataclass(frozen=True)
class Greedy(Policy):
    """Requests more memory than there is."""

    needs_scores: ClassVar[bool] = False

    def keep(self, scores: Scores, layer: int) -> torch.Tensor:
        return torch.empty(10**15)


def test_a_side_that_does_not_fit_does_not_take_the_other_with_it(loaded: LoadedModel) -> None:
    work = Workload(loaded.model, text_inputs(loaded.model, 1, LENGTH, 0), 2)
    runs = measure(work, {"full": Greedy(), "sparse": TopK(ratio=0.25)}, repeats=3)
    assert set(runs) == {"sparse"}
    assert len(runs["sparse"].prefill_ms) == 3


def test_a_length_that_does_not_fit_says_so(loaded: LoadedModel, settings: Any) -> None:
    length = 10**12
    assert least_bytes(loaded.model, 1, length) > 2**40
    measured = point(loaded, length, settings, LIMITS)
    assert {line["status"] for line in measured["lines"]} == {"does not fit"}
    assert {line["side"] for line in measured["lines"]} == {"full", "sparse"}
    assert measured["speedups"] == []


def test_prompts_hold_no_special_token(loaded: LoadedModel) -> None:
    ids = prompt_ids(loaded.model, 2, 5000, 0)
    config = loaded.model.config
    special = {config.image_token_id, config.video_token_id, config.text_config.eos_token_id}
    assert ids.shape == (2, 5000)
    assert not special & set(ids.unique().tolist())
    assert torch.equal(ids, prompt_ids(loaded.model, 2, 5000, 0))
    assert not torch.equal(ids, prompt_ids(loaded.model, 2, 5000, 1))


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        load_by_name("qwen9", Path(), "float32", "cpu", 0)


def test_the_stage_writes_its_files_and_goes_on_after_a_kill(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    from sf.sections import Profile, Runtime
    from sf.stages.profile import Parameters, run

    loaded.model.save_pretrained(tmp_path / "checkpoint")
    parameters = Parameters(
        runtime=Runtime(device="cpu", dtype="float32"),
        seed=0,
        model="tiny",
        checkpoint=tmp_path / "checkpoint",
        output=tmp_path / "never",
        profile=Profile(
            models=["checkpoint"],
            lengths=[128, 64],
            token_ratio=0.25,
            repeats=3,
            decode_tokens=2,
            batch=2,
            prompts="text",
            find_largest=False,
        ),
    )
    figures: dict[str, float] = {}
    job: Any = SimpleNamespace(
        out=tmp_path / "out",
        state=tmp_path / "state",
        tracker=SimpleNamespace(summary=figures.update),
    )
    run(parameters, job)
    files = {str(path.relative_to(job.out)) for path in job.out.rglob("*") if path.is_file()}
    pictures = {f"figures/{n}.{s}" for n in ("latency", "memory", "parts") for s in ("png", "svg")}
    names = ("profile.csv", "profile.parquet", "speedup.csv", "roofline.csv", "largest.csv")
    names = (*names, "dense.csv", "layers.csv")
    tables = {f"tables/{name}" for name in names}
    assert files == {"hardware.json", *tables, *pictures}
    table = pd.read_csv(job.out / "tables/profile.csv")
    assert list(table["length"].drop_duplicates()) == [64, 128]
    assert figures["checkpoint_kv_bytes_ratio_at_128"] > 1
    assert set(table["batch"]) == {2}
    assert pd.read_csv(job.out / "tables/largest.csv").empty
    facts = json.loads((job.out / "hardware.json").read_text())
    assert facts["ceilings"]["flops"] > 1e8
    assert facts["ceilings"]["bytes"] > 1e8
    for name in ("flops", "bytes"):  # measured at both ends of the run, the better one counts
        both = [ceilings[name] for ceilings in facts["ceilings_at_the_ends"]]
        assert len(both) == 2
        assert facts["ceilings"][name] == max(both)
    (job.state / "checkpoint-128.json").unlink()  # as if killed before the second length
    (job.out / "tables/profile.csv").unlink()
    run(parameters, job)
    again = pd.read_csv(job.out / "tables/profile.csv")
    first = table["length"] == 64
    pd.testing.assert_frame_equal(table[first], again[first])  # not measured twice
    assert len(again) == len(table)
