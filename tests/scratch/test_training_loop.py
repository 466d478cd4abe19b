"""Training from scratch learns, and a killed run ends where an uninterrupted one does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sf.mini.rows import WorldSize
from sf.mini.training_examples import CurriculumPhase, row_examples
from sf.models import build_tiny
from sf.scratch import training_loop
from sf.scratch.curriculum import Curriculum, world_media
from sf.scratch.tower_pretraining import naming_accuracy, pretrain_tower
from sf.scratch.training_loop import Tokens, TrainingSchedule, train_from_scratch

SIZE = WorldSize(side=3, frames=2)
WORDS = ["circle cross square triangle blue green red yellow <answer> what color is the"] * 3
READING = (CurriculumPhase(1.0, ("digit", "letter"), 0.0, 0.5),)


class Killed(Exception):
    """Replaces the end of the process."""


def setup_training(vision, steps: int):
    model, processor = build_tiny("qwen2_5_vl", WORDS, 0)
    tokens = Tokens(processor.tokenizer)
    curriculum = Curriculum(tokens, 0, steps, 8, "answer", curriculum=READING)
    curriculum.add("world", world_media(1, 12, SIZE), model, processor, vision)
    return model, tokens, curriculum


def trained(vision, folder, monkeypatch, kill_at: int | None = None) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(training_loop, "SAVE_SECONDS", 0.0)
    folder.mkdir(exist_ok=True)

    def run(log) -> dict[str, torch.Tensor]:
        model, tokens, curriculum = setup_training(vision, 6)
        schedule = TrainingSchedule(6, 1e-3, curriculum.batch_at, log, log_every=1)
        train_from_scratch(model, tokens.pad, schedule, folder / "checkpoint.pt")
        return model.state_dict()

    def killing(step: int, figures: dict[str, float]) -> None:
        if step == kill_at:
            raise Killed

    if kill_at is not None:
        with pytest.raises(Killed):
            run(killing)
    return run(lambda step, figures: None)


def test_a_killed_run_ends_with_the_same_weights(vision, tmp_path, monkeypatch):
    whole = trained(vision, tmp_path / "whole", monkeypatch)
    resumed = trained(vision, tmp_path / "killed", monkeypatch, kill_at=4)
    assert [n for n in whole if not torch.equal(whole[n], resumed[n])] == []


def test_a_resumed_run_does_not_start_over(vision, tmp_path, monkeypatch):
    steps: list[int] = []
    trained(vision, tmp_path, monkeypatch)
    model, tokens, curriculum = setup_training(vision, 6)
    schedule = TrainingSchedule(
        8, 1e-3, curriculum.batch_at, lambda step, figures: steps.append(step), log_every=1
    )
    curriculum.steps = 8
    train_from_scratch(model, tokens.pad, schedule, tmp_path / "checkpoint.pt")
    assert steps == [7, 8]


def test_training_lowers_the_loss_and_leaves_the_tower(vision, tmp_path):
    model, tokens, curriculum = setup_training(vision, 25)
    tower = {n: p.clone() for n, p in model.model.visual.state_dict().items()}
    losses: list[float] = []
    schedule = TrainingSchedule(
        25, 2e-3, curriculum.batch_at, lambda s, f: losses.append(f["loss"]), log_every=1
    )
    train_from_scratch(model, tokens.pad, schedule, tmp_path / "checkpoint.pt")
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:2])
    assert all(torch.equal(tower[n], p) for n, p in model.model.visual.state_dict().items())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_the_tower_learns_to_name_cells(family):
    model, processor = build_tiny(family, WORDS, 0)
    before = naming_accuracy(model, processor, seed=9, side=3, frames=2)
    pretrain_tower(model, processor, steps=80, rate=2e-3, seed=0, side=3, frames=2)
    assert naming_accuracy(model, processor, seed=9, side=3, frames=2) > before + 0.2


def test_steps_are_functions_of_the_seed(vision):
    _, _, curriculum = setup_training(vision, 6)
    _, _, again = setup_training(vision, 6)
    for step in (0, 5):
        assert curriculum.batch_at(step)[0] == again.batch_at(step)[0]
    assert curriculum.batch_at(0)[0] != curriculum.batch_at(1)[0]


def test_rows_about_one_media_become_one_example(vision, tmp_path):
    from dataclasses import replace

    from PIL import Image

    from sf.data.manifest import Row

    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    row = Row("1", "What?", "OCR", "image", (), "<answer>E</answer>", "E", "a.png", "s")
    row = replace(row, data_root=str(tmp_path))
    examples = row_examples([row, replace(row, id="2", problem="Which?")], vision, "answer")
    assert [len(example.turns) for example in examples] == [2]
    assert examples[0].turns[0][1] == "<answer>E</answer>"
