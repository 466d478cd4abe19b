"""`sf profile` from its command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from sf.baselines import build
from sf.cli import app
from sf.errors import ConfigError, DataError, EnvironmentFault, OutputConflictError
from sf.profiling import roofline
from sf.profiling.command import Request, _claim
from sf.profiling.generation import Workload
from sf.profiling.models import SHAPES, Shape, load_by_name
from sf.profiling.prompts import text_inputs
from sf.profiling.timing import measure

RUN = ["profile", "tiny", "--repeats", "3", "--decode-tokens", "2", "--length", "64"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny shape, and ceilings that take no time."""
    monkeypatch.setitem(SHAPES, "tiny", Shape(64, 4, 4, 2, 96, 256, True, "a test's"))
    monkeypatch.setattr("sf.profiling.study.ceilings", lambda *given: roofline.Ceilings(1e10, 1e10))
    # No heading is broken, whatever terminal other tests made the console for.
    monkeypatch.setattr("sf.cli.model.stdout", Console(soft_wrap=True, width=240))


def test_it_prints_its_table_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = [*RUN, "--device", "cpu", "--output", str(folder)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    for text in ("top_k at ratio = 0.25", "prefill (ms)", "token, loop (ms)", "of the roofline"):
        assert text in first.output
    table = pd.read_parquet(folder / "tables/profile.parquet")
    assert set(table["side"]) == {"full", "sparse", "transformers"}
    assert json.loads((folder / "figures.json").read_text())["tiny_kv_bytes_ratio_at_64"] > 1
    assert {path.name for path in (folder / "figures").iterdir()} >= {"latency.png", "memory.svg"}
    # With another length, existing measurements are not repeated.
    again = CliRunner().invoke(app, [*words, "--length", "128"])
    assert again.exit_code == 0, again.output
    longer = pd.read_parquet(folder / "tables/profile.parquet")
    same = longer[longer["length"] == 64].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, table)
    assert set(longer["length"]) == {64, 128}


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["--method", "zipvI"], ConfigError, "zipvl"),
        (["--method", "zipvl", "--value", "1.5"], ConfigError, r"p = 1\.5"),
        (["--repeats", "2"], ConfigError, "repeats = 2"),
        (["--prompts", "video", "--video", "a.mp4"], ConfigError, "cannot read a file"),
        (["--prompts", "audio"], ConfigError, "text or video"),
        (["--video", "a.mp4"], ConfigError, "needs --prompts video"),
        (["--device", "tpu"], ConfigError, "device"),
    ],
)
def test_bad_input_is_one_error(
    words: list[str], error: type[Exception], text: str, tmp_path: Path
) -> None:
    given = ["--device", "cpu", "--output", str(tmp_path / "out"), *words]
    with pytest.raises(error, match=text):
        CliRunner().invoke(app, [*RUN, *given], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["./missing", "missing", "no/one"])
def test_an_unknown_model_is_one_error(model: str, tmp_path: Path) -> None:
    words = ["profile", model, "--device", "cpu", "--output", str(tmp_path / "out")]
    with pytest.raises(DataError, match=rf"model.*{model}"):
        CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_no_cpu_run(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cuda"):
        CliRunner().invoke(app, [*RUN, "--device", "cuda"], catch_exceptions=False)


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputConflictError, match="something else"):
        CliRunner().invoke(
            app, [*RUN, "--device", "cpu", "--output", str(tmp_path)], catch_exceptions=False
        )


def test_only_pruned_caches_are_decoded_in_the_loop() -> None:
    """Twilight has its own attention in decoding; the loop would compute something else."""
    model = load_by_name("tiny", Path(), "float32", "cpu", seed=0).model
    work = Workload(model, text_inputs(model, 1, 64, 0), 2)
    sides = {name: build(name) for name in ("zipvl", "fastv", "twilight", "minference")}
    loops = {name: len(run.step_ms) for name, run in measure(work, sides, 1).items()}
    assert loops == {"zipvl": 1, "fastv": 1, "twilight": 0, "minference": 0}


def test_points_are_continued_for_the_very_same_request_only(tmp_path: Path) -> None:
    """Every argument that changes a measurement starts a new folder, except further lengths."""
    shares = tmp_path / "layers.csv"
    shares.write_text("layer,token_ratio\n0,0.5\n1,0.25\n")
    first = Request(
        model="m", method="top_k", value=0.5, replay=None, lengths=(64,), batch=1, repeats=3,
        decode_tokens=4, prompts="text", video=None, find_largest=False, memory_limit_gib=0.0,
        device="cpu", dtype="float32", output=tmp_path / "out",
    )  # fmt: skip
    changes: list[dict[str, Any]] = [
        {"model": "n"}, {"method": "zipvl"}, {"value": 0.25}, {"replay": shares, "value": None},
        {"batch": 2}, {"repeats": 4}, {"decode_tokens": 5}, {"prompts": "video"},
        {"video": tmp_path}, {"find_largest": True}, {"memory_limit_gib": 2.0}, {"device": "cuda"},
        {"dtype": "bfloat16"}, {"seed": 1},
    ]  # fmt: skip
    folders = [_claim(replace(first, **change)) for change in ({}, *changes)]
    assert len(set(folders)) == len(folders)
    assert _claim(replace(first, lengths=(64, 128))) == folders[0]
    (tmp_path / "checkpoint").mkdir()
    weights, video = tmp_path / "checkpoint/model.safetensors", tmp_path / "a.mp4"
    table = "layer,token_ratio\n0,0.5\n1,{}\n"
    for path, field in ((shares, "replay"), (video, "video"), (weights, "model")):
        value: Any = str(path.parent) if field == "model" else path
        digests = set()
        for content in ("0.75", "0.125"):
            path.write_text(table.format(content))
            digests.add(_claim(replace(first, value=None, **{field: value})))
        assert len(digests) == 2, field
