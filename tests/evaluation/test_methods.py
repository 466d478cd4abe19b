"""Every method through the model class and the stage: batches, ratios, records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted import ANSWERING, BOUNDS, VISION

from sf.attention.blocks import MobaAttention, NsaAttention, VideoNsaAttention
from sf.attention.trained import note_trained
from sf.baselines import METHODS, method_class
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.model import SparseChatModel
from sf.evaluation.run import evaluate_benchmarks
from sf.jobs import Job
from sf.models import load_model, load_processor
from sf.sections import Answering, Benchmarks, Evaluate, Runtime
from sf.stages import benchmarks, evaluate
from sf.tracking import Tracker

# Two need their own weights, and moba's blocks are longer than these prompts.
BLOCKS = {
    "moba": MobaAttention(2, 4),
    "nsa": NsaAttention(3, 4, 2, 4, 6),
    "videonsa": VideoNsaAttention(1, 4, 4),
}
TRAINING_FREE = [name for name in METHODS if name not in ("full", *BLOCKS)]
VALUES = {"threshold": 0.02, "visionzip": 0.5}


def _records(checkpoint: Path, home: Path, work: Path, name: str, size: int) -> dict[Any, Any]:
    lm = SparseChatModel(
        str(checkpoint),
        method=name,
        value=VALUES.get(name),
        batch_size=size,
        **BOUNDS,  # type: ignore[arg-type]
    )
    benchmarks = [benchmark_named(task) for task in ("mmstar", "videomme")]
    results = evaluate_benchmarks(lm, benchmarks, home, work, most_new_tokens=4)
    records = [s.record for r in results for samples in r.samples.values() for s in samples]
    return {(record.task, record.doc_id): record for record in records}


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_a_method_answers_in_batches_as_alone(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path, name: str
) -> None:
    path = checkpoints["qwen2_5_vl"]
    alone, together = (_records(path, home, tmp_path / str(size), name, size) for size in (1, 4))
    text = json.loads((path / "config.json").read_text())["text_config"]
    head = text["hidden_size"] // text["num_attention_heads"]
    whole = 2 * text["num_key_value_heads"] * head * 4 * text["num_hidden_layers"]
    assert len({record.prompt_tokens for record in alone.values()}) > 3
    for key, record in alone.items():
        assert record.reply == together[key].reply
        assert record.token_ratio == pytest.approx(together[key].token_ratio, abs=2e-3)
        assert record.kv_bytes == together[key].kv_bytes
        kv_ratio = record.kv_bytes / (whole * record.prompt_tokens)
        keeps_kv = name in ("minference", "twilight")
        assert kv_ratio == pytest.approx(1.0 if keeps_kv else record.token_ratio)
    ratios = [record.token_ratio for record in alone.values()]
    assert max(ratios) <= 1
    assert min(ratios) < 1


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_checkpoint_trained_with_blocks_answers_in_batches_as_alone(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path, family: str, name: str
) -> None:
    model, processor = load_model(checkpoints[family]), load_processor(checkpoints[family])
    note_trained(model, BLOCKS[name])
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    alone, together, dense = (
        _records(tmp_path / "trained", home, tmp_path / f"{how}{size}", how, size)
        for how, size in (("trained", 1), (name, 4), ("full", 4))
    )
    replies = {key: record.reply for key, record in alone.items()}
    assert replies == {key: record.reply for key, record in together.items()}
    assert replies != {key: record.reply for key, record in dense.items()}
    for key, record in alone.items():
        assert record.token_ratio == pytest.approx(together[key].token_ratio, abs=2e-3)
        assert 0 < record.token_ratio < 1
        assert record.kv_bytes == dense[key].kv_bytes


def test_a_stage_runs_a_method_at_its_default_or_at_a_value(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def job(name: str) -> Job:
        folders = [tmp_path / name / part for part in ("out", "state")]
        for folder in folders:
            folder.mkdir(parents=True)
        return Job(out=folders[0], state=folders[1], tracker=Tracker(folders[0]))

    source = job("benchmarks")
    benchmarks.run(
        benchmarks.Parameters(
            benchmarks=Benchmarks(source="synthetic", samples=2, suites=["mmstar"]),
            vision=VISION,
            seed=0,
            output=source.out,
        ),
        source,
    )
    values = {}
    for name, value in (("twilight", None), ("fastv", None), ("fastv", 0.25), ("zipvl", None)):
        target = job(f"{name}{value}")
        evaluate.run(
            evaluate.Parameters(
                vision=VISION,
                runtime=Runtime(device="cpu", dtype="float32"),
                evaluate=Evaluate(retention_p=0.9, batch=2),
                answering=Answering(**ANSWERING),  # type: ignore[arg-type]
                data=tmp_path,
                model="tiny",
                row=name,
                method=name,
                value=value,
                suite="mmstar",
                seed=0,
                checkpoint=checkpoints["qwen2_vl"],
                benchmarks=source.out,
                output=target.out,
            ),
            target,
        )
        results = json.loads((target.out / "results.json").read_text())
        assert results["method"] == name
        values[name, value] = results["value"]
    # The study's retention_p is zipvl's alone: Twilight's is a share of estimated attention.
    hyperparameter = method_class("twilight").hyperparameter
    assert hyperparameter is not None
    assert values == {
        ("twilight", None): hyperparameter.default,
        ("fastv", None): 0.5,
        ("fastv", 0.25): 0.25,
        ("zipvl", None): 0.9,
    }
