"""Shares recorded in one run are kept in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sf.attention import sparsify
from sf.cli import app
from sf.errors import ConfigError, DataError
from sf.profiling import roofline
from sf.profiling.models import SHAPES, Shape, load_by_name
from sf.profiling.prompts import text_inputs
from sf.profiling.replay import Replay, read_shares, stretched
from sf.selection import LayerShares, TopK


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", Shape(64, 3, 4, 2, 96, 256, True, "a test's"))
    monkeypatch.setattr("sf.profiling.study.ceilings", lambda *given: roofline.Ceilings(1e10, 1e10))


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    """A table as the stage `calibrate` writes it."""
    lines = [
        {"retention_p": p, "layer": layer, "token_ratio": share, "samples": 9}
        for p, shares in ((0.9, (0.8, 0.1, 0.3)), (0.975, (0.9, 0.2, 0.4)))
        for layer, share in enumerate(shares)
    ]
    file = tmp_path / "layers.csv"
    pd.DataFrame(lines).sample(frac=1.0, random_state=0).to_csv(file, index=False)
    return file


def test_a_layer_keeps_its_recorded_share() -> None:
    model = load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    inputs = text_inputs(model, 2, 100, 0)
    inputs["attention_mask"][0, :40] = 0  # 60 tokens and 100
    shares = (0.8, 0.101, 1.0)
    with Replay(shares).apply(model) as trace:
        model.generate(**inputs, max_new_tokens=1)
    counts = torch.stack([kept.sum(-1) for kept in trace.kept])
    assert counts.tolist() == [[48, 80], [6, 10], [60, 100]]
    assert all(bool(kept[:, -1].all()) for kept in trace.kept)  # the last one is among them


def test_the_best_tokens_are_kept() -> None:
    """Those of top-k with one fewer, and the last token."""
    model = load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    kept = []
    for policy in (TopK(ratio=26 / 90), LayerShares(shares=(0.3, 0.3, 0.3))):
        with sparsify(model, policy) as trace:
            model.generate(**text_inputs(model, 1, 90, 0), max_new_tokens=1)
        kept.append(trace.kept[0])
    assert torch.equal(*kept)
    assert int(kept[0].sum()) == 27


def test_a_model_with_more_layers_than_shares_is_named() -> None:
    model = load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    with sparsify(model, LayerShares(shares=(0.5,))), pytest.raises(ConfigError, match="layer 1"):
        model.generate(**text_inputs(model, 1, 90, 0), max_new_tokens=1)


def test_shares_stretch_by_relative_depth() -> None:
    assert stretched((0.2, 0.6), 3) == pytest.approx((0.2, 0.4, 0.6))
    assert stretched((0.5, 0.1, 0.3), 3) == pytest.approx((0.5, 0.1, 0.3))
    assert stretched((0.5, 0.1, 0.3), 5) == pytest.approx((0.5, 0.3, 0.1, 0.2, 0.3))
    assert stretched((0.7,), 4) == pytest.approx((0.7,) * 4)


def test_of_several_lengths_the_longest_is_read(calibrated: Path, tmp_path: Path) -> None:
    table = pd.read_csv(calibrated).query("retention_p == 0.9").drop(columns="retention_p")
    short = table.assign(length=1024, token_ratio=0.5)
    pd.concat([table.assign(length=4096), short]).to_csv(tmp_path / "two.csv", index=False)
    assert read_shares(tmp_path / "two.csv") == (0.8, 0.1, 0.3)


def test_a_calibration_is_read_at_its_p(calibrated: Path) -> None:
    assert read_shares(calibrated, 0.9) == (0.8, 0.1, 0.3)
    assert read_shares(calibrated, 0.975) == (0.9, 0.2, 0.4)
    with pytest.raises(ConfigError, match=r"retention_p = 0\.9, 0\.975"):
        read_shares(calibrated)
    with pytest.raises(ConfigError, match=r"retention_p = 0\.9, 0\.975"):
        read_shares(calibrated, 0.5)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, "not a table"),
        ("", "not a table"),
        ("a,b\n1,2\n", "columns"),
        ("layer,token_ratio\n0,0.5\n2,0.5\n", "every layer"),
        ("layer,token_ratio\n0,0.5\n0,0.5\n", "every layer"),
        ("layer,token_ratio\n0,1.5\n", "every layer"),
        ("layer,token_ratio\n0,\n", "every layer"),
        ("layer,token_ratio\n", "every layer"),
    ],
)
def test_a_damaged_table_is_one_error(text: str | None, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "layers.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=rule):
        read_shares(file)


def test_what_one_profile_recorded_another_replays(calibrated: Path, tmp_path: Path) -> None:
    run = ["profile", "tiny", "--repeats", "3", "--decode-tokens", "2", "--length", "100"]
    words = ["--replay", str(calibrated), "--value", "0.9", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*run, "--device", "cpu", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "out/tables/profile.parquet")
    how = "shares of 3 layers (mean 0.400) replayed from layers.csv at p = 0.9"
    assert set(table["ratio_set_by"]) == {how}
    sparse = table[table["side"] == "sparse"].set_index("metric")["value"]
    assert sparse["prefill_selection_ms"] > 0  # a replay pays for selecting
    recorded = tmp_path / "out/tables/layers.csv"
    assert read_shares(recorded) == pytest.approx((0.8, 0.1, 0.3))
    model = load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    with Replay(read_shares(recorded)).apply(model) as trace:
        model.generate(**text_inputs(model, 1, 100, 1), max_new_tokens=1)
    assert [int(kept.sum()) for kept in trace.kept] == [80, 10, 30]


def test_a_replay_has_no_method(calibrated: Path, tmp_path: Path) -> None:
    words: list[Any] = ["profile", "tiny", "--replay", str(calibrated), "--method", "zipvl"]
    given = [*words, "--device", "cpu", "--output", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="one of the two"):
        CliRunner().invoke(app, given, catch_exceptions=False)
