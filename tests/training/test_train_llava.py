"""LLaVA in training: the same numbers as plain forwards, a frozen tower, a plain checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import test_resume
import torch
from forked_ranks import on_ranks
from test_sft import first_loss, gradients, prompt_and_reply
from tiny_world import LLAVA, SETTINGS, VISION, Log, build, parameters, write_rows

from sf.attention import sparsify
from sf.attention.video_form import video_form
from sf.data.collect import ANNOTATIONS
from sf.data.manifest import Row, read_manifest
from sf.data.prompts import messages
from sf.data.vision import encode
from sf.errors import ConfigError, UnsupportedModelError
from sf.jobs import run_stage
from sf.mini.scenes import sample_clip, write_video
from sf.models import load_model, load_processor
from sf.models.load import FAMILIES
from sf.progress import Progress
from sf.ranks import rank
from sf.selection import TopP
from sf.training.backbone import backbone, vision_parts
from sf.training.dataset import rows_of_sources
from sf.training.encoding import Encoder, PromptBatch, encoder_outputs
from sf.training.run import assemble, train

ONE = pytest.mark.parametrize("llava_base", ["llava_video"], indirect=True)
OF_TOWER = ("vision_tower", "multi_modal_projector", "image_newline", "vision_resampler")


def frozen(base: Path) -> Any:
    """The base model with a frozen tower, projector and line end."""
    model = load_model(base)
    for part in vision_parts(model).values():
        part.requires_grad_(False)
    return model


def step_by_step(model: Any, inputs: dict[str, Any], reply: torch.Tensor) -> torch.Tensor:
    """Mean NLL of a reply as inference sees it: a prefill, then one token after another."""
    logps = []
    output, length = model(**inputs, use_cache=True), inputs["input_ids"].shape[1]
    for at, token in enumerate(reply[0]):
        logps.append(torch.log_softmax(output.logits[0, -1], dim=-1)[token])
        output = model(
            input_ids=reply[:, at : at + 1],
            attention_mask=torch.ones(1, length + at + 1, dtype=torch.long),
            position_ids=torch.tensor([[length + at]]),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
    return -torch.stack(logps).mean()


def near(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal up to rounding; gradients of these random weights are large."""
    assert ours.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.1
    for name, gradient in expected.items():
        atol = 2e-5 * max(1.0, float(gradient.abs().max()))
        assert torch.allclose(ours[name], gradient, atol=atol), name


def test_loss_and_gradient_are_those_of_sparse_decoding_alone(
    llava_base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """An image in tiles and a video, shared prompts padded in a batch, beside each row alone."""
    p = parameters(objective="zipvl_sft")
    trainer: Any = assemble(p, llava_base, rows, tmp_path, Log(), Progress("t", 4)).trainer
    batch, loss, ours = first_loss(trainer)
    kinds = {rows[row].data_type for row in batch["row"].tolist()}
    assert kinds == {"image", "video"}
    thresholds = trainer.schedule(0, batch["place"].tolist())
    model, processor = frozen(llava_base), load_processor(llava_base)
    expected = torch.zeros(())
    for row, threshold in zip(batch["row"].tolist(), thresholds, strict=True):
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        with sparsify(model, TopP(p=threshold)):
            expected = expected + step_by_step(model, inputs, reply) / len(thresholds)
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert not any(part in name for name in ours for part in OF_TOWER)
    near(ours, gradients(model))


def test_full_retention_is_plain_fine_tuning(
    llava_base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """transformers' own loss with labels on the answer only, one question at a time."""
    p = parameters(objective="zipvl_sft", retention_p=[1.0])
    trainer: Any = assemble(p, llava_base, rows, tmp_path, Log(), Progress("t", 4)).trainer
    batch, loss, ours = first_loss(trainer)
    model, processor = frozen(llava_base), load_processor(llava_base)
    expected = torch.zeros(())
    for row in batch["row"].tolist():
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        whole = torch.cat([inputs.pop("input_ids"), reply], dim=1)
        labels = whole.clone()
        labels[:, : -reply.shape[1]] = -100
        inputs["attention_mask"] = torch.ones_like(whole)
        output = model(input_ids=whole, labels=labels, **inputs)
        expected = expected + output.loss / len(batch["row"])
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    near(ours, gradients(model))


@torch.no_grad()
@pytest.mark.parametrize("family", LLAVA)
def test_videos_of_any_length_share_a_batch(family: str, rows: list[Row], tmp_path: Path) -> None:
    """Which pixels cannot: transformers' classes want one number of frames in a forward pass."""
    clip = sample_clip(np.random.default_rng(3), frames=2, event="recolour")
    write_video(clip, tmp_path / "short.mp4")
    short = replace(rows[1], id="short", media="short.mp4", data_root=str(tmp_path))
    chosen = [rows[0], rows[1], short, rows[2]]
    model, processor = build(family, rows)
    encoder = Encoder(model, processor, chosen, VISION, templates=["answer"] * 4, frozen_tower=True)
    pad = processor.tokenizer.pad_token_id
    prompts = PromptBatch.collate([encoder(at) for at in range(4)], pad)
    owner = torch.tensor([2, 0, 3, 1, 1])
    ours = model(
        input_ids=prompts.input_ids[owner],
        attention_mask=prompts.attention_mask[owner],
        position_ids=prompts.position_ids(owner, slice(None)),
        mm_encoder_outputs=encoder_outputs(model, prompts, prompts.features(model), owner),
    ).logits
    frames, tiles = set(), 0
    for at, question in enumerate(owner.tolist()):
        inputs = encode(processor, [messages(chosen[question], "answer")], VISION)
        alone, length = model(**inputs).logits[0], inputs["input_ids"].shape[1]
        assert torch.allclose(ours[at, -length:], alone, atol=1e-4), question
        if "pixel_values_videos" in inputs:
            frames.add(inputs["pixel_values_videos"].shape[1])
        else:
            tiles = max(tiles, inputs["pixel_values"].shape[1])
    assert frames == {2, 4}
    assert tiles > 1


@pytest.mark.parametrize("objective", sorted(SETTINGS))
def test_every_objective_trains_the_language_model_only(
    llava_base: Path, rows: list[Row], tmp_path: Path, objective: str
) -> None:
    p, log = parameters(objective=objective, steps=1), Log()
    trainer: Any = assemble(p, llava_base, rows, tmp_path, log, Progress("t", 1)).trainer
    before = {name: w.clone() for name, w in trainer.model.state_dict().items()}
    learnt = [name for name, w in trainer.model.named_parameters() if w.requires_grad]
    assert not any(part in name for name in learnt for part in OF_TOWER)
    trainer.train()
    after = trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model.layers.0.self_attn.q_proj" in name for name in changed)
    assert all("language_model" in name or "lm_head" in name for name in changed)
    ((_, figures),) = log.history
    assert figures["grad_norm"] > 0
    if objective == "sparsity_forcing":
        assert figures["logp_gap"] < 1e-4
    if objective in ("pathwise", "distil", "sharpness"):
        name = {"pathwise": "effective_ratio", "distil": "sparsity_term"}.get(objective, objective)
        assert figures[name] > 0


@pytest.mark.parametrize("objective", ["sparsity_forcing", "distil"])
def test_adapters_are_those_of_the_decoder(
    llava_base: Path, rows: list[Row], tmp_path: Path, objective: str
) -> None:
    p = parameters(objective=objective, steps=2, lora={"rank": 4, "alpha": 8}, learning_rate=1e-2)
    log, note = Log(), {"model": "tiny"}
    train(p, llava_base, rows, tmp_path / "state", tmp_path / "out", log, note)
    before, after = (load_model(where).state_dict() for where in (llava_base, tmp_path / "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("language_model" in name and "_proj.weight" in name for name in moved)
    figure = "kl" if objective == "sparsity_forcing" else "loss"
    assert log.history[-1][1][figure] > 0  # against the model without its adapters


def test_a_trained_tower_moves_with_projector_and_line_end(
    llava_base: Path, rows: list[Row], tmp_path: Path
) -> None:
    p = parameters(objective="zipvl_sft", steps=1, train_vision=True)
    trainer: Any = assemble(p, llava_base, rows, tmp_path, Log(), Progress("t", 1)).trainer
    before = {name: w.clone() for name, w in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    for part in OF_TOWER[:3]:
        names = [name for name in before if part in name]
        assert any(not torch.equal(before[name], after[name]) for name in names), part


@ONE
def test_a_trained_tower_in_several_processes_needs_no_checkpointing(
    llava_base: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    p = parameters(train_vision=True, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match=r"gradient_checkpointing = True.* LLaVA tower"):
        assemble(p, llava_base, rows, tmp_path, Log(), Progress("t", 1))


@ONE
def test_a_killed_run_goes_on_to_the_same_weights(
    llava_base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """kill -9 between two checkpoints; the result is a plain checkpoint with its video form."""
    whole = test_resume.run(llava_base, rows, tmp_path / "whole", "sparsity_forcing")
    parts = tmp_path / "parts"
    test_resume.kill_between_checkpoints(llava_base, rows, parts, "sparsity_forcing")
    resumed = test_resume.run(llava_base, rows, parts, "sparsity_forcing")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert any(not torch.equal(w, whole[n]) for n, w in load_model(llava_base).state_dict().items())
    before, after = (load_processor(where) for where in (llava_base, parts / "out"))
    question = [messages(rows[1], "answer")]
    expected = encode(before, question, VISION)
    for name, tensor in encode(after, question, VISION).items():
        assert torch.equal(tensor, expected[name])
    models = [load_model(where) for where in (llava_base, parts / "out")]
    assert type(models[0]) is type(models[1])
    assert video_form(models[0].config) == video_form(models[1].config)


def test_the_stages_train_on_a_part_of_the_rows(
    llava_base: Path, rows: list[Row], tmp_path: Path
) -> None:
    """`base`, `prepare` and `train` as `sf run` calls them, on files in Video-R1-260k's layout."""
    given = tmp_path / "rows"
    records = []
    for row in rows:
        source = "LLaVA-Video-178K" if row.data_type == "video" else "Chart"
        place = given / source / row.media
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(row.media_path, place)
        names = ("problem", "problem_type", "data_type", "solution")
        record = {name: getattr(row, name) for name in names}
        path = f"./{source}/{row.media}"
        records.append({**record, "problem_id": row.id, "path": path, "data_source": "mixed"})
    (given / ANNOTATIONS).write_text(json.dumps(records))
    p = parameters(steps=2).model_dump(mode="json")
    p["train"]["data_sources"] = ["LLaVA-Video-178K"]
    seen = {name: p[name] for name in ("vision", "runtime", "answering", "seed")}
    base = {"family": load_model(llava_base).config.model_type, "source": str(llava_base)}
    places = {name: str(tmp_path / name) for name in ("base", "data", "trained")}
    chosen = {
        "source": str(given),
        **{"calibration_share": 0.3, "heldout_share": 0.0, "max_reject_share": 0.0},
        **{"calibration_rows": 2, "heldout_rows": 1},
    }
    stages: dict[str, dict[str, Any]] = {
        "prepare": {"seed": 0, "prepare": chosen, "output": places["data"]},
        "base": {"model": "tiny", "base": base, "output": places["base"], "data": places["data"]},
        "train": {**p, **places, "output": places["trained"]},
    }
    stages["prepare"] |= {"vision": p["vision"], "evaluation_vision": p["vision"]}
    stages["base"] |= seen
    del stages["train"]["trained"]
    for stage, values in stages.items():
        assert run_stage(stage, values, "own", tracked=False) == "done"
    prepared = read_manifest(tmp_path / "data" / "train.parquet")
    assert {row.data_type for row in prepared} == {"image", "video"}
    table = pd.read_csv(tmp_path / "trained" / "tables" / "completions.csv", dtype=str)
    videos = {row.id for row in rows if row.data_type == "video"}
    assert set(table["id"]) <= videos
    model, processor = (load(tmp_path / "trained") for load in (load_model, load_processor))
    with sparsify(model, TopP(p=0.5)) as trace, torch.no_grad():
        model(**encode(processor, [messages(prepared[0], "answer")], VISION))
    assert 0 < float(trace.token_ratio.mean()) < 1


def test_data_sources_are_folders_or_datasets_and_none_is_missing(rows: list[Row]) -> None:
    named = [
        replace(rows[0], id="a", data_source="one", media="CLEVRER/a.png"),
        replace(rows[0], id="b", data_source="two", media="part1.zip!/LLaVA-Video-178K/x/b.mp4"),
        replace(rows[0], id="c", data_source="two", media="LLaVA-Video-178K/1.zip!/x/c.mp4"),
    ]
    for sources, ids in (
        ([], "abc"), (["one"], "a"), (["LLaVA-Video-178K"], "bc"), (["CLEVRER", "two"], "abc"),
    ):  # fmt: skip
        assert "".join(row.id for row in rows_of_sources(named, sources)) == ids
    with pytest.raises(ConfigError, match=r"train.data_sources = 'y'. has no row .*two"):
        rows_of_sources(named, ["one", "y"])


def test_an_unknown_architecture_is_refused_by_name() -> None:
    class Other:
        class config:
            model_type = "qwen3_vl"

    with pytest.raises(UnsupportedModelError, match=r"'qwen3_vl'.* must be one of .*llava_onev"):
        backbone(Other())
    assert all(kind in FAMILIES for kind in ("llava_onevision", "llava_next_video"))


def on_two_ranks(base: Path, folder: Path, sharding: str) -> None:
    """On one of the ranks."""
    torch.set_num_threads(1)
    rows, own = write_rows(folder / f"rows-{rank()}"), folder / sharding
    p = parameters(sharding=sharding, steps=2)
    train(p, base, rows, own / "state", own / "out", Log(), {"model": "tiny"})


@ONE
def test_sharded_training_ends_where_data_parallel_does(llava_base: Path, tmp_path: Path) -> None:
    path = os.pathsep.join(str(Path(__file__).parents[at]) for at in range(3))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(llava_base), str(tmp_path)]
    done = subprocess.run(command, env=environment, text=True, timeout=600, capture_output=True)
    assert not done.returncode, done.stderr[-4000:]
    start = load_model(llava_base).state_dict()
    ours, other = (load_model(tmp_path / name / "out").state_dict() for name in ("fsdp", "none"))
    assert ours.keys() == other.keys() == start.keys()
    change = torch.cat([(other[name] - start[name]).flatten() for name in start])
    error = torch.cat([(ours[name] - other[name]).flatten() for name in start])
    assert change.norm() > 0
    assert error.norm() < 0.02 * change.norm()


if __name__ == "__main__":
    for kind in ("none", "fsdp"):
        on_ranks(2, lambda kind=kind: on_two_ranks(*map(Path, sys.argv[1:]), kind))
