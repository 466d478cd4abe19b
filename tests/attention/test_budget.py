"""A share of the tokens instead of p: read from the checkpoint's own curve, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import sf
from sf.attention.ratio_curve import curve_of, drop_curve, note_curve
from sf.attention.trained import TrainedAttention, note_trained, write_sparsity
from sf.errors import ConfigError, DataError
from sf.selection import TopK, TopP

CURVE = [(0.5, 0.1), (0.9, 0.2), (0.95, 0.4), (0.99, 0.4), (0.999, 0.9)]


def source(curve: Any = CURVE, method: str | None = "zipvl") -> Any:
    """A configuration with a record and a curve."""
    config = SimpleNamespace(token_ratio_curve=curve)
    if method is not None:
        config.trained_attention = {"name": method, "value": 0.9}
    return config


@pytest.mark.parametrize(
    ("ratio", "p"),
    [(0.1, 0.5), (0.15, 1 - 0.05**0.5), (0.2, 0.9), (0.3, 1 - 0.005**0.5), (0.4, 0.95),
     (0.65, 1 - 1e-5**0.5), (0.95, 0.9995), (1.0, 1.0)],
)  # fmt: skip
def test_p_is_interpolated_on_the_curve(ratio: float, p: float) -> None:
    """Half-way between two points 1 - p is their geometric mean."""
    policy = sf.Budget(ratio).policy(source())
    assert isinstance(policy, TopP)
    assert policy.p == pytest.approx(p)


def test_a_share_is_top_ks_own_setting() -> None:
    assert sf.Budget(0.3).policy(source(None, "top_k")) == TopK(ratio=0.3)


@pytest.mark.parametrize(
    ("given", "ratio", "words"),
    [
        (source(), 0.05, "begins at 0.1"),
        (source(None), 0.25, "sf curve"),
        (source(None, None), 0.25, "sf curve"),
        (source(CURVE, "threshold"), 0.25, "trained with threshold"),
    ],
)
def test_what_cannot_be_kept_is_refused(given: Any, ratio: float, words: str) -> None:
    with pytest.raises(ConfigError, match=f"token_ratio = {ratio}.*{words}"):
        sf.Budget(ratio).policy(given)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_lies_above_zero_and_up_to_one(ratio: float) -> None:
    with pytest.raises(ConfigError, match="token_ratio"):
        sf.Budget(ratio)


@pytest.mark.parametrize(
    "curve",
    ["text", [0.5], [[0.5, 0.1, 1]], [[0.5, 0.2], [0.4, 0.3]], [[0.5, 0.2], [0.6, 0.1]],
     [[0.0, 0.1]], [[0.5, 1.2]], [[0.5, None]], [[0.5, 0.1], [0.5, 0.2]]],
)  # fmt: skip
def test_a_malformed_curve_is_one_error(curve: Any) -> None:
    with pytest.raises(DataError, match=r"token_ratio_curve.*rise within.*sf curve"):
        curve_of(source(curve))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as training leaves it, under top-p, without a curve."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model, record = Qwen2ForCausalLM(config), TrainedAttention("zipvl", 0.975)
    note_trained(model, record)
    model.save_pretrained(tmp_path)
    write_sparsity(tmp_path, record, {"objective": "distil"})
    return tmp_path


def test_the_curve_travels_with_the_model(folder: Path) -> None:
    """As transformers loads it; a ratio that falls because of noise is raised."""
    note_curve(folder, [(0.5, 0.3), (0.9, 0.29), (0.95, 0.6)])
    expected = ((0.5, 0.3), (0.9, 0.3), (0.95, 0.6))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert curve_of(folder) == curve_of(model) == curve_of(model.config) == expected
    beside = json.loads((folder / "sparsity.json").read_text(encoding="utf-8"))
    assert beside["token_ratio_curve"] == [list(point) for point in expected]
    assert beside["method"] == "zipvl"
    ids = torch.arange(40).view(1, 40)
    with sf.sparsify(model, sf.Budget(0.45)) as trace, torch.no_grad():
        model(input_ids=ids)
    with sf.sparsify(model, TopP(p=1 - 0.005**0.5)) as same, torch.no_grad():
        model(input_ids=ids)
    assert 0 < float(trace.token_ratio) < 1
    assert torch.equal(trace.layer_ratios, same.layer_ratios)
    drop_curve(model)
    assert curve_of(model) == ()


def test_a_budget_is_asked_of_the_model_it_runs_on(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ConfigError, match="has no curve"):
        sf.sparsify(model, sf.Budget(0.25))
    assert torch.isfinite(model(input_ids=torch.arange(5).view(1, 5)).logits).all()
