"""The curve that a checkpoint carries, and the share kept by a budget read from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import VISION

import sf
from sf.attention.ratio_curve import curve_of
from sf.attention.trained import TrainedAttention, note_trained, record_of, write_sparsity
from sf.data.manifest import Row
from sf.data.prompts import messages
from sf.data.vision import encode
from sf.errors import ConfigError
from sf.mini.scenes import render, sample_scene
from sf.models import load_model, load_processor
from sf.sections import Runtime
from sf.selection import TopP
from sf.training import ratio_curve
from sf.training.ratio_curve import (
    GRID,
    CurveRequest,
    add_ratio_curve,
    measure_ratio_curve,
    spread,
)

RUNTIME = Runtime(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def many(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Pictures of different sizes."""
    place, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(4)
    for at in range(24):
        render(sample_scene(rng, rows=3 + at % 3, cols=4)).save(place / f"{at}.png")
    return [
        replace(rows[0], id=str(at), media=f"{at}.png", data_root=str(place)) for at in range(24)
    ]


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint under top-p, as training leaves it, with attention that is not flat."""
    path = tmp_path_factory.mktemp("curve")
    model, record = load_model(base), TrainedAttention("zipvl", 0.975)
    generator = torch.Generator().manual_seed(1)
    for weight in model.model.language_model.layers.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.25, generator=generator)
    note_trained(model, record)
    model.save_pretrained(path)
    load_processor(base).save_pretrained(path)
    write_sparsity(path, record, {"objective": "distil"})
    return path


def kept(folder: Path, rows: list[Row], policy: sf.Budget | TopP) -> float:
    """Mean token ratio of prefills, one row at a time."""
    model, processor = load_model(folder), load_processor(folder)
    ratios = []
    for row in rows:
        inputs = encode(processor, [messages(row, "answer")], VISION)
        with sf.sparsify(model, policy) as trace, torch.no_grad():
            model(**inputs)
        ratios.append(float(trace.token_ratio))
    return sum(ratios) / len(ratios)


def test_a_budget_is_met_on_other_rows(folder: Path, many: list[Row]) -> None:
    """Within two points of the ratio: half of the rows give the curve, the other half test it."""
    request = CurveRequest(many[::2], VISION, RUNTIME, "answer", batch=5)
    curve = measure_ratio_curve(folder, request)
    assert [p for p, _ in curve] == list(GRID)
    assert dict(curve)[0.8] == pytest.approx(kept(folder, many[::2], TopP(p=0.8)), abs=1e-6)
    assert curve == curve_of(folder) == curve_of(load_model(folder))
    assert record_of(folder) == TrainedAttention("zipvl", 0.975)
    beside = json.loads((folder / "sparsity.json").read_text(encoding="utf-8"))
    assert [tuple(point) for point in beside["token_ratio_curve"]] == list(curve)
    least = curve[0][1]
    for share in (0.1, 0.4, 0.8):
        ratio = least + share * (0.95 - least)
        assert kept(folder, many[1::2], sf.Budget(ratio)) == pytest.approx(ratio, abs=0.02)
    assert kept(folder, many[:1], sf.Budget(1.0)) == 1


def test_what_a_killed_call_measured_is_not_measured_again(
    folder: Path, many: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = CurveRequest(many[:5], VISION, RUNTIME, "answer", batch=2)
    whole = add_ratio_curve(folder, request, tmp_path)
    log = tmp_path / "ratio_curve_0.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 3 * len(GRID)
    log.write_text("".join(lines[:-4]) + lines[-4][:9])
    counted, prefill = [], ratio_curve._ratios
    monkeypatch.setattr(
        ratio_curve, "_ratios", lambda *given: (counted.append(given[2]), prefill(*given))[1]
    )
    with pytest.warns(UserWarning, match="cut off"):
        assert add_ratio_curve(folder, request, tmp_path) == whole
    assert counted == list(GRID[-4:])


def test_rows_are_taken_from_the_whole_manifest(many: list[Row]) -> None:
    assert spread(many, 4) == many[::6]
    assert spread(many, 100) == many
    assert len({row.id for row in spread(many, 7)}) == 7


def test_no_rows_or_no_p_is_one_error(base: Path, many: list[Row], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows"):
        measure_ratio_curve(base, CurveRequest([], VISION, RUNTIME, "answer", batch=1))
    copy = tmp_path / "threshold"
    shutil.copytree(base, copy)
    write_sparsity(copy, TrainedAttention("threshold", 0.01), {})
    with pytest.raises(ConfigError, match="has no retention_p"):
        measure_ratio_curve(copy, CurveRequest(many, VISION, RUNTIME, "answer", batch=1))
