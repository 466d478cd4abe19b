"""Answers to manifest rows: right rows, right ratios, nothing lost by a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_rows import picture_row

from sf import TopP
from sf.config import Vision
from sf.data.manifest import Row
from sf.data.rewards import correctness
from sf.errors import ConfigError
from sf.evaluation.answer import answer_rows, batches
from sf.mini.scenes import render, sample_clip, sample_scene, write_video
from sf.models import load_model, load_processor

VISION = Vision(
    image_min_pixels=784,
    image_max_pixels=12 * 784,
    video_min_pixels=784,
    video_max_pixels=6 * 784,
    video_max_frames=4,
    video_fps=1.0,
)
TOKENS = 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Three images of two sizes and two clips, in turn."""
    folder, rng, made = tmp_path_factory.mktemp("rows"), np.random.default_rng(5), []
    for at, kind in enumerate(["image", "video", "image", "video", "image"]):
        if kind == "image":
            subject: Any = sample_scene(rng, rows=2 + at % 4, cols=3, objects=(1, 2))
            render(subject).save(folder / f"{at}.png")
        else:
            subject = sample_clip(rng, rows=2, cols=2, frames=4, objects=(1, 1))
            write_video(subject, folder / f"{at}.mp4")
        media = f"{at}.{'png' if kind == 'image' else 'mp4'}"
        made.append(picture_row(folder, media, kind=kind, problem_type="OCR"))
    return made


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def model(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> tuple[Any, Any]:
    """Model and processor of each family."""
    path = checkpoints[request.param]
    return load_model(path), load_processor(path)


def test_answers_come_in_the_order_of_the_rows_and_hold_their_facts(
    model: tuple[Any, Any], rows: list[Row]
) -> None:
    answers = answer_rows(*model, rows, VISION, max_new_tokens=TOKENS)
    assert [a.id for a in answers] == [row.id for row in rows]
    for answer, row in zip(answers, rows, strict=True):
        assert answer.correct == correctness("OCR", answer.reply, row.solution, cutoff=0.5)
        assert (answer.data_type, answer.problem_type) == (row.data_type, "OCR")
        assert answer.token_ratio == 1.0
        assert set(answer.layer_ratios) == {1.0}
        assert answer.prompt_tokens > 4


def test_a_right_reply_counts_as_correct(model: tuple[Any, Any], rows: list[Row]) -> None:
    network, processor = model
    reply = "<answer>ring</answer><|im_end|>"
    tokens = processor.tokenizer(reply, add_special_tokens=False)["input_ids"]
    bias = [[tokens[: end + 1], 1000.0 * (end + 1)] for end in range(len(tokens))]
    right = replace(rows[0], solution="<answer>ring</answer>")
    wrong = replace(rows[0], id="wrong", solution="<answer>star</answer>")
    network.generation_config.sequence_bias = bias  # the reply to every question
    try:
        answers = answer_rows(network, processor, [right, wrong], VISION, max_new_tokens=20)
    finally:
        network.generation_config.sequence_bias = None
    assert [a.reply for a in answers] == ["<answer>ring</answer>"] * 2
    assert [a.correct for a in answers] == [1.0, 0.0]


def test_the_batch_size_changes_nothing(model: tuple[Any, Any], rows: list[Row]) -> None:
    policy = TopP(p=0.8)
    alone = answer_rows(*model, rows, VISION, policy, 1, TOKENS)
    together = answer_rows(*model, rows, VISION, policy, 3, TOKENS)
    for one, other in zip(alone, together, strict=True):
        assert one.reply == other.reply
        assert one.layer_ratios == pytest.approx(other.layer_ratios, abs=1e-6)
        assert one.prompt_tokens == other.prompt_tokens


def test_ratios_are_those_of_the_policy(model: tuple[Any, Any], rows: list[Row]) -> None:
    low, high = (
        answer_rows(*model, rows, VISION, TopP(p=p), max_new_tokens=TOKENS) for p in (0.3, 0.9)
    )
    for little, much in zip(low, high, strict=True):
        assert 0 < little.token_ratio < much.token_ratio < 1
        assert little.token_ratio == pytest.approx(np.mean(little.layer_ratios))


def test_the_training_mode_is_given_back(model: tuple[Any, Any], rows: list[Row]) -> None:
    network, processor = model
    network.train()
    try:
        answer_rows(network, processor, rows[:1], VISION, max_new_tokens=1)
        assert network.training
        assert torch.is_grad_enabled()
    finally:
        network.eval()


def test_batches_hold_one_media_type_and_every_row_once(rows: list[Row]) -> None:
    parts = batches(rows, 2)
    assert [len({row.data_type for row in part}) for part in parts] == [1] * len(parts)
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    assert max(map(len, parts)) == 2
    with pytest.raises(ConfigError, match="batch"):
        batches(rows, 0)
