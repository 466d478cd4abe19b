"""Every command runs a checkpoint under the attention that it was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from picture_rows import picture_row
from scripted import BOUNDS

from sf.ask import answer, ask, load_media
from sf.attention.blocks import MobaAttention
from sf.attention.trained import SPARSITY_FILE, TrainedAttention, note_trained, write_sparsity
from sf.baselines import build
from sf.config import Vision
from sf.data.manifest import Row
from sf.errors import UnsupportedModelError
from sf.evaluation.answer import Answer
from sf.evaluation.curve import answers_at
from sf.evaluation.match_token_ratio import match_method
from sf.evaluation.model import SparseChatModel
from sf.evaluation.resumable_log import ResumableLog
from sf.evaluation.two_turn import ARMS, pairs_of, two_turn_answers
from sf.mini.scenes import render, sample_scene
from sf.models import load_model, load_processor
from sf.profiling.command import Request, _sparse
from sf.selection import TopP

RECORDS = {
    "top_k": TrainedAttention("top_k", 0.4),
    "threshold": TrainedAttention("threshold", 0.02),
    "moba": TrainedAttention.of(MobaAttention(top_k=2, block_size=4)),
}
VISION = Vision(**BOUNDS)  # type: ignore[arg-type]
QUESTION = "What color is the ring?"


@pytest.fixture(scope="module", params=RECORDS)
def record(request: pytest.FixtureRequest) -> TrainedAttention:
    return RECORDS[request.param]


@pytest.fixture(scope="module")
def folder(
    record: TrainedAttention, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint as training leaves it."""
    path = tmp_path_factory.mktemp(record.method)
    model = load_model(checkpoints["qwen2_vl"])
    note_trained(model, record)
    model.save_pretrained(path)
    load_processor(checkpoints["qwen2_vl"]).save_pretrained(path)
    write_sparsity(path, record, {"objective": "sparsity_forcing"})
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_model(folder), load_processor(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    import numpy as np

    place, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(2)
    render(sample_scene(rng, rows=3, cols=3, objects=(1, 1))).save(place / "0.png")
    return [picture_row(place, "0.png"), picture_row(place, "0.png")]


def test_evaluation(folder: Path, record: TrainedAttention) -> None:
    lm = SparseChatModel(str(folder), method="trained", **BOUNDS)  # type: ignore[arg-type]
    assert (lm.method, lm.attention) == (record.method, build(record.method, record.value))
    if record.method == "moba":
        with pytest.raises(UnsupportedModelError, match="trained with moba"):
            SparseChatModel(str(folder), method="zipvl", **BOUNDS)  # type: ignore[arg-type]


def test_the_file_alone_is_enough_for_a_selector(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / SPARSITY_FILE).read_text())
    if record["method"] == "moba":
        pytest.skip("its config.json holds what its layers are")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["text_config"]["trained_attention"]
    (copy / "config.json").write_text(json.dumps(config))
    lm = SparseChatModel(str(copy), method="trained", **BOUNDS)  # type: ignore[arg-type]
    assert lm.attention == build(record["method"], record["value"])


def test_curve(
    loaded: tuple[Any, Any], rows: list[Row], record: TrainedAttention, tmp_path: Path
) -> None:
    given: tuple[Any, ...] = (*loaded, rows[:1], VISION)
    table = answers_at(
        *given, [0.4, 0.98, 1.0], ResumableLog(Answer, tmp_path / "a"), batch=1, max_new_tokens=2
    )
    ratios = table.groupby("retention_p")["token_ratio"].mean()
    assert ratios[1.0] == pytest.approx(1)
    value = 0.02 if record.method == "threshold" else 0.4
    point = 1 - value if record.method == "threshold" else value
    if record.method != "moba":
        attention = build(record.method, value)
        with attention.apply(loaded[0]) as trace:
            inputs = _inputs(loaded, rows[0])
            loaded[0].generate(**inputs, max_new_tokens=1)
        assert ratios[point] == pytest.approx(float(trace.token_ratio))
    assert ratios[point] < 1
    if record.method == "moba":
        with pytest.raises(UnsupportedModelError, match="trained with moba"):
            answers_at(
                *given,
                [0.4],
                ResumableLog(Answer, tmp_path / "b"),
                batch=1,
                max_new_tokens=2,
                method="zipvl",
            )


def _inputs(loaded: tuple[Any, Any], row: Row) -> Any:
    from sf.data.prompts import messages
    from sf.data.vision import encode

    return encode(loaded[1], [messages(row, "answer")], VISION)


def test_match(
    loaded: tuple[Any, Any], rows: list[Row], record: TrainedAttention, tmp_path: Path
) -> None:
    match, probes = match_method(
        *loaded, rows[:1], VISION, record.method, 0.5, ResumableLog(Answer, tmp_path / "m"),
        tolerance=0.3, batch=1, max_new_tokens=1,
    )  # fmt: skip
    assert set(probes["method"]) == {record.method}
    assert match.ratio < 1 or record.method == "moba"
    if record.method == "moba":
        with pytest.raises(UnsupportedModelError, match="trained with moba"):
            match_method(
                *loaded, rows[:1], VISION, "zipvl", 0.5, ResumableLog(Answer, tmp_path / "z"),
                tolerance=0.3, batch=1, max_new_tokens=1,
            )  # fmt: skip


def test_second_questions(
    loaded: tuple[Any, Any], rows: list[Row], record: TrainedAttention, tmp_path: Path
) -> None:
    def answers(p: float) -> pd.DataFrame:
        log = ResumableLog(Answer, tmp_path / f"{p}.jsonl")
        return two_turn_answers(
            *loaded, pairs_of(rows, 1), VISION, [p], log, batch=1, max_new_tokens=2
        )

    if record.method == "moba":
        with pytest.raises(UnsupportedModelError, match=r"moba.*keeps the whole cache"):
            answers(0.5)
        return
    point = 0.98 if record.method == "threshold" else 0.4
    table = answers(point).set_index("arm")
    assert set(table.index) == {*ARMS}
    with build(record.method, record.value).apply(loaded[0]) as trace:
        loaded[0].generate(**_inputs(loaded, rows[0]), max_new_tokens=1)
    assert table.loc["pruned", "token_ratio"] == pytest.approx(float(trace.token_ratio))
    assert table.loc["dense", "token_ratio"] == 1


def test_ask(
    loaded: tuple[Any, Any], folder: Path, rows: list[Row], record: TrainedAttention
) -> None:
    media = load_media("image", rows[0].media_path, VISION)
    result = answer(*loaded, media, QUESTION, max_new_tokens=2)
    turn = {"role": "user", "content": [media.part, {"type": "text", "text": QUESTION}]}
    from sf.data.vision import encode

    with build(record.method, record.value).apply(loaded[0]) as trace:
        loaded[0].generate(**encode(loaded[1], [[turn]], VISION), max_new_tokens=2)
    assert result.token_ratio == pytest.approx(float(trace.token_ratio))
    assert result.token_ratio < 1
    with pytest.raises(UnsupportedModelError, match=f"trained with {record.method}"):
        ask(folder, QUESTION, image=rows[0].media_path, policy=TopP(p=0.9))
    full = answer(*loaded, media, QUESTION, TopP(p=1.0), max_new_tokens=2)
    assert full.token_ratio == 1


def test_profile(folder: Path, record: TrainedAttention) -> None:
    fields = dict.fromkeys(Request.__dataclass_fields__)
    request = Request(**{**fields, "model": str(folder)})  # type: ignore[arg-type]
    attention, name = _sparse(request)
    assert attention == build(record.method, record.value)
    assert name.startswith(record.method)
