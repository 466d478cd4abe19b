"""The second question after the cache of the first turn was pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scripted import BOUNDS
from tiny_llava import build_llava

from sf import FixedMask, TopP, sparsify
from sf.config import Vision
from sf.data.manifest import Row
from sf.data.vision import encode
from sf.errors import UnsupportedModelError
from sf.evaluation.answer import Answer
from sf.evaluation.intervals import bootstrap_clusters, bootstrap_mean
from sf.evaluation.resumable_log import ResumableLog
from sf.evaluation.two_turn import ARMS, _talk, pairs_of, two_turn_answers, two_turn_table
from sf.evaluation.two_turn_decoding import greedy, more_of, positions_of
from sf.mini.scenes import render, sample_clip, sample_scene, write_video
from sf.models import load_model, load_processor
from sf.tables import write_csv, write_parquet

VISION = Vision(**BOUNDS)  # type: ignore[arg-type]
TOKENS = 5


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Two images and a clip: 3, 2 and 2 questions, of different lengths."""
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(5)
    render(sample_scene(rng, rows=4, cols=5)).save(folder / "0.png")
    render(sample_scene(rng, rows=6, cols=6)).save(folder / "1.png")
    write_video(sample_clip(rng, rows=4, cols=4, frames=4), folder / "2.mp4")
    files = ["0.png"] * 3 + ["1.png"] * 2 + ["2.mp4"] * 2
    return [
        Row(
            id=f"row-{at}",
            problem=f"What is in this picture{', now' * (at % 3)}?",
            problem_type="free-form",
            data_type="video" if file.endswith("mp4") else "image",
            options=(),
            solution="<answer>ring</answer>",
            answer="ring",
            media=file,
            data_source="test",
            data_root=str(folder),
        )
        for at, file in enumerate(files)
    ]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "llava_onevision"])
def loaded(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> tuple[Any, Any]:
    if request.param == "llava_onevision":
        return build_llava(request.param, ["What is in this picture, now? ring"] * 3)
    path = checkpoints[request.param]
    return load_model(path), load_processor(path)


def _answers(loaded: Any, rows: list[Row], log: Path, batch: int = 8) -> pd.DataFrame:
    model, processor = loaded
    return two_turn_answers(
        model,
        processor,
        pairs_of(rows, 9),
        VISION,
        [0.6, 1.0],
        ResumableLog(Answer, log),
        batch=batch,
        max_new_tokens=TOKENS,
    )


def test_pairs_are_neighbours_about_the_same_media(rows: list[Row]) -> None:
    ids = [(pair.first.id, pair.second.id) for pair in pairs_of(rows, 9)]
    assert ids == [("row-0", "row-1"), ("row-3", "row-4"), ("row-5", "row-6")]
    assert len(pairs_of(rows, 2)) == 2


def test_whole_retention_is_dense_in_every_arm_and_dense_is_generate(
    loaded: tuple[Any, Any], rows: list[Row], tmp_path: Path
) -> None:
    model, processor = loaded
    answers = _answers(loaded, rows, tmp_path / "log.jsonl")
    whole = answers[answers["retention_p"] == 1.0].pivot(index="id", columns="arm", values="reply")
    cached = model.config.model_type == "llava_onevision"  # whose template ends turns differently
    for arm in ARMS[1:3] if cached else ARMS[1:]:
        assert (whole[arm] == whole["dense"]).all()
    for pair in [] if cached else pairs_of(rows, 9):
        inputs = encode(processor, [_talk(pair, "answer")], VISION)
        output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        tokens = output[0, inputs["input_ids"].shape[1] :]
        expected = processor.decode(tokens, skip_special_tokens=True).strip()
        assert whole["dense"][pair.id] == expected
    sparse = answers[answers["retention_p"] == 0.6]
    assert sparse["token_ratio"].max() < 0.9
    arms = sparse.pivot(index="id", columns="arm", values="reply")
    assert (arms["pruned"] != arms["whole"]).any()
    assert (arms["pruned"] != arms["anew"]).any()
    for pair in pairs_of(rows, 9):
        talk = _talk(pair, "answer")
        inputs = encode(processor, [talk[:1]], VISION)
        more = more_of(processor, [talk], [pair.first.solution], "cpu")
        for arm in ("whole", "pruned"):
            policy = TopP(p=0.6, whole_kv=arm == "whole")
            (tokens,), _ = greedy(model, inputs, more, policy, TOKENS)
            reply = processor.decode(tokens, skip_special_tokens=True).strip()
            assert arms[arm][pair.id] == reply


@torch.no_grad()
def test_pruned_equals_the_training_form(loaded: tuple[Any, Any], rows: list[Row]) -> None:
    """One forward pass without a cache over prompt, continuation and reply, same kept sets."""
    model, processor = loaded
    compared = 0
    for pair in pairs_of(rows, 9):
        talk = _talk(pair, "answer")
        inputs = encode(processor, [talk[:1]], VISION)
        more = more_of(processor, [talk], [pair.first.solution], "cpu")
        width, extra = inputs["input_ids"].shape[1], more.ids.shape[1]
        replies, ratios = greedy(model, inputs, more, TopP(p=0.6), TOKENS)
        completion = torch.tensor(replies)
        # A random model may say a placeholder, which no forward with pixels can read.
        holders = torch.tensor([model.config.image_token_id, model.config.video_token_id])
        completion = completion[
            :, : TOKENS - int(torch.isin(completion, holders).cumsum(1).gt(0).sum())
        ]
        compared += completion.shape[1]
        with sparsify(model, TopP(p=0.6)) as trace:
            model(**inputs)
        assert torch.equal(ratios, trace.layer_ratios)
        ids = torch.cat([inputs["input_ids"], more.ids, completion], dim=1)
        mask = torch.ones_like(ids)
        forced = {**inputs, "input_ids": ids, "attention_mask": mask}
        if "mm_token_type_ids" in inputs:
            types = torch.zeros_like(ids)
            types[:, :width] = inputs["mm_token_type_ids"]
            forced["mm_token_type_ids"] = types
        positions = positions_of(model, inputs, ids, mask)
        with sparsify(model, FixedMask(trace.kept), prompt_width=width):
            logits = model(**forced, position_ids=positions, use_cache=False).logits
        assert torch.equal(logits[:, width + extra - 1 : -1].argmax(-1), completion)
    assert compared > 6


def test_batches_equal_batch_one_and_a_kill_costs_nothing(
    loaded: tuple[Any, Any], rows: list[Row], tmp_path: Path
) -> None:
    log = tmp_path / "together.jsonl"
    together = _answers(loaded, rows, log)
    alone = _answers(loaded, rows, tmp_path / "alone.jsonl", batch=1)
    names = ["arm", "retention_p", "id", "reply", "correct", "token_ratio", "prompt_tokens"]
    pd.testing.assert_frame_equal(together[names], alone[names], rtol=1e-5)
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == (1 + 2 * 3) * 3
    log.write_text("".join(lines[:8]) + lines[8][:30])
    pd.testing.assert_frame_equal(_answers(loaded, rows, log)[names], together[names])
    assert log.read_text().splitlines(keepends=True)[:8] == lines[:8]
    assert len(log.read_text().splitlines()) == len(lines)


def test_no_pairs_give_empty_tables_that_can_be_read_again(
    loaded: tuple[Any, Any], rows: list[Row], tmp_path: Path
) -> None:
    answers = _answers(loaded, rows[:1], tmp_path / "log.jsonl")
    write_parquet(answers, tmp_path / "answers.parquet")
    write_csv(two_turn_table(answers, 0), tmp_path / "table.csv")
    assert pd.read_parquet(tmp_path / "answers.parquet").empty
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.empty
    assert {"retention_p", "pruned", "cost_low"} <= set(table.columns)


def test_a_template_that_rewrites_a_turn_is_refused(
    checkpoints: dict[str, Path], rows: list[Row]
) -> None:
    processor = load_processor(checkpoints["qwen2_5_vl"])
    template = processor.chat_template
    processor.chat_template = "{{ messages | length }}" + template
    pair = pairs_of(rows, 1)[0]
    talk = _talk(pair, "answer")
    with pytest.raises(UnsupportedModelError, match=r"two_turn\.pairs 0"):
        more_of(processor, [talk], [pair.first.solution], "cpu")


def test_the_table_counts_and_pairs() -> None:
    right = {
        ("dense", 1.0): [1, 1, 1, 1],
        ("whole", 0.9): [1, 1, 1, 0],
        ("pruned", 0.9): [1, 0, 0, 0],
        ("anew", 0.9): [1, 1, 0, 0],
    }
    answers = pd.DataFrame(
        [
            {
                "arm": arm,
                "retention_p": p,
                "id": f"{at}",
                "media": "ab"[at // 2],
                "correct": float(value),
                "token_ratio": 0.5,
            }
            for (arm, p), values in right.items()
            for at, value in enumerate(values)
        ]
    )
    (line,) = two_turn_table(answers, seed=0).to_dict("records")
    assert (line["pairs"], line["media"], line["token_ratio"]) == (4, 2, 0.5)
    assert [line[arm] for arm in ARMS] == [1.0, 0.75, 0.25, 0.5]
    assert (line["cost"], line["gap"]) == (-0.5, -0.75)
    assert (line["gap_low"], line["gap_high"]) == (-1.0, -0.5)
    assert two_turn_table(pd.DataFrame(), seed=0).empty


def test_clusters_are_drawn_whole() -> None:
    values = np.random.default_rng(0).normal(size=40)
    each = [str(at) for at in range(40)]
    order = np.argsort(each)
    low, high = bootstrap_clusters(values, each, seed=1)
    assert (low, high) == pytest.approx(bootstrap_mean(values[order], 1))
    twice = np.repeat(values, 2)
    assert bootstrap_clusters(twice, np.repeat(each, 2), seed=1) == pytest.approx((low, high))
    assert all(np.isnan(bootstrap_clusters([1.0, 0.0], ["a", "a"], seed=0)))
