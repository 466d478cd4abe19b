"""A video of increasing length through the real processor and vision tower."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sf.errors import ConfigError, DataError
from sf.models import build_tiny
from sf.profiling.measurement import Settings, point
from sf.profiling.models import SHAPES, LoadedModel, Shape, load_by_name, load_checkpoint
from sf.profiling.prompts import video_encoder
from sf.profiling.roofline import Ceilings
from sf.selection import TopK


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: Any) -> LoadedModel:
    """A tiny model with its processor, saved and loaded."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in build_tiny(request.param, ["What happens in this video?"], seed=0):
        part.save_pretrained(folder)
    return load_checkpoint("tiny", folder, "float32", "cpu")


def test_a_prompt_is_about_as_long_as_asked(loaded: LoadedModel) -> None:
    widths = []
    for length in (200, 600, 1000):
        inputs = video_encoder(loaded.model, loaded.processor, 1, length)()
        width = inputs["input_ids"].shape[1]
        assert length - 64 - 60 < width <= length
        placeholders = (inputs["input_ids"] == loaded.model.config.video_token_id).sum()
        assert int(placeholders) == inputs["video_grid_thw"].prod() // 4
        widths.append(width)
    assert widths == sorted(set(widths))


def test_a_point_times_the_vision_tower(loaded: LoadedModel) -> None:
    settings = Settings((300,), TopK(ratio=0.25), "top-k", 3, 2, batch=2, prompts="video")
    lines = pd.DataFrame(point(loaded, 300, settings, Ceilings(1e10, 1e10))["lines"])
    vision = lines[lines["metric"] == "prefill_vision_ms"].set_index("side")["value"]
    assert (vision[["full", "sparse"]] > 0).all()
    assert set(lines["batch"]) == {2}
    length = int(lines["length"].iloc[0])
    assert 176 < length <= 300
    ratio = lines[lines["side"] == "sparse"]["token_ratio"].iloc[0]
    assert 0.25 <= ratio < 0.25 + 1 / length


def test_the_processors_time_is_a_row_of_its_own(loaded: LoadedModel) -> None:
    settings = Settings((300,), TopK(ratio=0.25), "top-k", 3, 2, prompts="video")
    measured = point(loaded, 300, settings, Ceilings(1e10, 1e10))
    lines = pd.DataFrame(measured["lines"]).set_index(["side", "metric"])["value"]
    assert lines["full", "processor_ms"] == lines["sparse", "processor_ms"] > 0
    for side in ("full", "sparse"):
        first = lines[side, "first_token_ms"]
        assert first > max(lines[side, "processor_ms"], lines[side, "prefill_ms"])
    ratios = {line["metric"] for line in measured["speedups"]}
    assert {"prefill_ms", "first_token_ms"} <= ratios  # both: the processor dilutes the gain
    assert "processor_ms" not in ratios


def test_decoding_a_file_is_the_processors_time(loaded: LoadedModel, tmp_path: Path) -> None:
    from sf.profiling.prompts import milliseconds

    calls = []
    taken = milliseconds(lambda: calls.append(time.sleep(0.01)), 3, torch.device("cpu"))
    assert len(calls) == len(taken) == 3
    assert min(taken) >= 10.0
    missing = video_encoder(loaded.model, loaded.processor, 1, 300, file=tmp_path / "no.mp4")
    with pytest.raises(DataError, match=r"no\.mp4"):  # it is read when called, not before
        missing()


def test_text_prompts_have_no_vision(loaded: LoadedModel) -> None:
    settings = Settings((100,), TopK(ratio=0.25), "top-k", 3, 2)
    lines = pd.DataFrame(point(loaded, 100, settings, Ceilings(1e10, 1e10))["lines"])
    assert (lines[lines["metric"] == "prefill_vision_ms"]["value"] == 0).all()
    assert not set(lines["metric"]) & {"processor_ms", "first_token_ms"}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_random_weights_read_random_pixels(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", Shape(64, 2, 4, 2, 96, 256, True, "a test's", family))
    made = load_by_name("tiny", Path(), "float32", "cpu", seed=0)
    settings = Settings((300,), TopK(ratio=0.25), "top-k", 3, 2, batch=2, prompts="video")
    lines = pd.DataFrame(point(made, 300, settings, Ceilings(1e10, 1e10))["lines"])
    assert (lines[lines["metric"] == "prefill_vision_ms"]["value"] > 0).all()
    assert 176 < int(lines["length"].iloc[0]) <= 300
    assert set(lines["note"]) == {"a test's; random pixels, no processor"}
    assert not set(lines["metric"]) & {"processor_ms", "first_token_ms"}


def test_random_pixels_come_as_a_processor_gives_them(loaded: LoadedModel) -> None:
    real = video_encoder(loaded.model, loaded.processor, 2, 300)()
    made = video_encoder(loaded.model, None, 2, 300)()
    assert set(made) == set(real)
    for name in set(real) - {"input_ids", "attention_mask", "mm_token_type_ids"}:
        assert made[name].shape == real[name].shape, name
        assert made[name].dtype == real[name].dtype, name
    assert torch.equal(made["video_grid_thw"], real["video_grid_thw"])
    for inputs in (real, made):
        video = inputs["input_ids"] == loaded.model.config.video_token_id
        assert torch.equal(inputs["mm_token_type_ids"], 2 * video.long())
        assert int(video.sum()) == int(inputs["video_grid_thw"].prod(-1).sum()) // 4


def test_llava_needs_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Shape(64, 2, 4, 2, 96, 256, True, "a test's", "llava_onevision")
    monkeypatch.setitem(SHAPES, "tiny", tiny)
    model = load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    with pytest.raises(ConfigError, match="only the Qwen2-VL line"):
        video_encoder(model, None, 1, 300)


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen2-vl-7b", 0.67), ("qwen2.5-vl-7b", 0.68), ("qwen2.5-vl-3b", 0.67)]
)
def test_real_shapes_have_their_tower(name: str, billions: float) -> None:
    """Built without memory; the whole 7B has 8.29 billion weights, the 3B 3.75."""
    model = load_by_name(name, Path(), "bfloat16", "meta", seed=0).model
    size = sum(part.numel() for part in model.model.visual.parameters())
    assert size / 1e9 == pytest.approx(billions, abs=0.01)
    whole = sum(part.numel() for part in model.parameters()) / 1e9
    assert whole == pytest.approx(3.75 if "3b" in name else 8.29, abs=0.01)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava_onevision"])
def test_every_family_is_built_and_measured(family: Any) -> None:
    SHAPES["tiny"] = Shape(64, 2, 4, 2, 96, 256, True, "a test's", family)
    try:
        loaded = load_by_name("tiny", Path(), "float32", "cpu", seed=0)
    finally:
        del SHAPES["tiny"]
    settings = Settings((64,), TopK(ratio=0.25), "top-k", 3, 2)
    lines = pd.DataFrame(point(loaded, 64, settings, Ceilings(1e10, 1e10))["lines"])
    loop = lines[lines["metric"] == "step_ms"].set_index("side")["value"]
    assert set(loop.index) == {"full", "sparse", "transformers"}
    rate = lines[lines["metric"] == "tokens_per_s"].set_index("side")["value"]
    assert rate["full"] == pytest.approx(1e3 / loop["full"])
