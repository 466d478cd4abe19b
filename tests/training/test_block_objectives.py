"""MoBA, NSA, VideoNSA as objectives: loss, gradient, resumption, the resulting checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sft import first_loss, gradients, prompt_and_reply, same, step_by_step, trainer_of
from tiny_world import Log, parameters

from sf.attention.blocks import Replacement
from sf.attention.trained import TrainedAttention, note_trained, record_of, trained_attention
from sf.baselines import apply_method, resolve, resolve_point
from sf.data.manifest import Row
from sf.data.prompts import messages
from sf.data.vision import encode
from sf.errors import ConfigError
from sf.models import load_model, load_processor
from sf.training.objectives import block_attention
from sf.training.run import train


@pytest.fixture(params=["moba", "nsa", "videonsa"])
def objective(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def equipped(base: Path, p: Any) -> Any:
    """The base model as training starts with it."""
    model = load_model(base)
    model.model.visual.requires_grad_(False)
    attention = block_attention(p.objective)
    assert attention is not None
    torch.manual_seed(p.seed)
    note_trained(model, attention)
    return model


def test_loss_and_gradient_are_those_of_decoding_step_by_step(
    base: Path, rows: list[Row], tmp_path: Path, objective: str
) -> None:
    trainer, _ = trainer_of(base, rows, tmp_path, objective)
    batch, loss, step_gradients = first_loss(trainer)
    p = parameters(objective=objective)
    model, processor = equipped(base, p), load_processor(base)
    expected, ratios = torch.zeros(()), []
    for row in batch["row"].tolist():
        inputs, reply = prompt_and_reply(processor, rows[row], p)
        with Replacement(model, block_attention(p.objective)) as trace:
            expected = expected + step_by_step(model, inputs, reply) / len(batch["row"])
            ratios.append(float(trace.token_ratio))
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    same(step_gradients, gradients(model), atol=2e-5)
    for name in ("nsa", "videonsa"):
        assert any(f".{name}." in weight for weight in step_gradients) == (objective == name)
    logged = trainer._figures._values["token_ratio"]
    assert logged[-1] == pytest.approx(sum(ratios) / len(ratios), abs=1e-5)


def test_a_run_in_two_parts_is_one_run_and_its_checkpoint_is_evaluated_as_trained(
    base: Path, rows: list[Row], tmp_path: Path, objective: str
) -> None:
    note = {"model": "tiny", "objective": objective}

    def run(folder: Path, steps: int) -> Any:
        p = parameters(objective=objective, steps=steps, lr_schedule="constant")
        p = p.model_copy(update={"gradient_checkpointing": True})
        train(p, base, rows, folder / "state", folder / "out", Log(), note)
        return load_model(folder / "out")

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    again = run(tmp_path / "parts", 4)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    p = parameters(objective=objective)
    assert trained_attention(whole.config) == block_attention(p.objective)
    start, end = equipped(base, p).state_dict(), whole.state_dict()
    assert start.keys() == end.keys()
    moved = {name for name, weight in start.items() if not torch.equal(weight, end[name])}
    assert any("q_proj" in name for name in moved)
    assert any("compress_key.outer" in name for name in moved) == (objective == "nsa")
    assert any("videonsa.inner" in name for name in moved) == (objective == "videonsa")
    assert record_of(tmp_path / "whole" / "out") == TrainedAttention.of(
        block_attention(p.objective)
    )
    assert resolve(tmp_path / "whole" / "out").name == objective
    assert record_of(base) is None
    assert resolve(base).name == "zipvl"
    with pytest.raises(ConfigError, match=r"objective = 'zipvl_sft'.*base checkpoint"):
        train(
            parameters(objective="zipvl_sft"), tmp_path / "whole" / "out", rows,
            tmp_path / "state", tmp_path / "out", Log(), note,
        )  # fmt: skip
    assert 'apply_method(model, "trained")' in (tmp_path / "whole/out/README.md").read_text()
    inputs = encode(load_processor(base), [messages(rows[0], "answer")], p.vision, "cpu")
    with Replacement(whole, block_attention(p.objective)):
        expected = whole(**inputs).logits
    for name in ("trained", objective):
        with apply_method(whole, name):
            assert torch.equal(whole(**inputs).logits, expected)
    # The curve of such a checkpoint goes by the token ratio; the least that NSAs read of a short
    # prompt is above the first two points.
    ratios = []
    for share in (0.2, 0.6, 1.0):
        with resolve_point(whole, share).apply(whole) as trace:
            whole(**inputs)
        ratios.append(float(trace.token_ratio))
    assert ratios == sorted(ratios)
    assert ratios[0] < ratios[2]
    assert ratios[0] < ratios[1] or objective != "moba"
    assert ratios[2] == pytest.approx(1) or objective != "moba"
