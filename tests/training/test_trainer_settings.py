"""TRL's and transformers' settings: each takes effect, or is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_world import VISION, first_batch
from transformers import Qwen2Config, TrainingArguments
from trl import GRPOConfig

from sf.attention.decoding import Sampled
from sf.data.manifest import Row
from sf.errors import ConfigError
from sf.models import load_model, load_processor
from sf.training import generation, trainer_settings
from sf.training.dataset import templates_of, training_set
from sf.training.encoding import Encoder
from sf.training.retention_schedule import RetentionSchedule
from sf.training.rewards import GroupReward
from sf.training.sampling import truncations
from sf.training.sparsity_weight import PathwiseWeight
from sf.training.trainer import SparsityForcingTrainer
from sf.training.trainer_settings import check_arguments, check_grpo_config

GROUP = 4
MODEL = SimpleNamespace(config=Qwen2Config())


def config(folder: Path | str = "unused", **changes: Any) -> GRPOConfig:
    """Two questions per step, four rollouts each, with `changes`."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 8,
        "num_generations": GROUP, "beta": 0.1, "loss_type": "grpo", "max_completion_length": 4,
        "learning_rate": 1e-3, "shuffle_dataset": False, "use_cpu": True, "save_strategy": "no",
        "logging_steps": 1, "report_to": [], "disable_tqdm": True, "seed": 3,
        "activation_checkpointing": False, "bf16": False, "use_bias_correction_kl": False,
    }  # fmt: skip
    return GRPOConfig(**{**settings, **changes})


@pytest.fixture
def build(base: Path, rows: list[Row], tmp_path: Path) -> Callable[..., SparsityForcingTrainer]:
    """Trainers as a user of the library builds them."""

    def make(name: str = "run", evaluated: bool = False, **changes: Any) -> SparsityForcingTrainer:
        model, processor = load_model(base), load_processor(base)
        model.model.visual.requires_grad_(False)
        templates = templates_of(len(rows), "answer", 0.0, 3)
        encoder = Encoder(model, processor, rows, VISION, templates=templates, frozen_tower=True)
        return SparsityForcingTrainer(
            model,
            processor,
            config(tmp_path / name, **changes),
            training_set(rows, 16, 3, templates),
            encoder,
            RetentionSchedule("top_p", (0.5, 0.7, 0.9, 1.0), None, GROUP, 3),
            GroupReward(GROUP, 0.99, False),
            eval_dataset=training_set(rows, 3, 5, templates) if evaluated else None,
        )

    return make


# -- the table ----------------------------------------------------------------------------------


def test_every_setting_is_in_one_group() -> None:
    """Fails if TRL or transformers has a new setting: decide how to treat it."""
    groups = [trainer_settings.HONOURED, trainer_settings.INERT, trainer_settings.REFUSED]
    known = [*groups, trainer_settings._GRPO_ONLY]
    for name in (setting.name for setting in fields(GRPOConfig)):
        assert sum(name in group for group in known) == 1, name
    for owner in trainer_settings.INERT.values():
        assert owner in {*trainer_settings.REFUSED, *trainer_settings._GRPO_ONLY, "tools"}


BAD: dict[str, Any] = {
    "temperature": 0.0, "top_p": 0.0, "top_k": -1, "min_p": 1.5, "repetition_penalty": 1.05,
    "generation_kwargs": {"top_p": 0.9}, "cache_implementation": "static",
    "max_completion_length": 0, "use_vllm": True, "use_transformers_continuous_batching": True,
    "use_transformers_paged": True, "chat_template_kwargs": {"enable_thinking": False},
    "pad_to_multiple_of": 8, "model_init_kwargs": {"dtype": "bfloat16"}, "sync_ref_model": True,
    "router_aux_loss_coef": 0.01, "fp16": True, "bf16_full_eval": True, "fp16_full_eval": True,
    "torch_compile": True, "torch_compile_backend": "inductor", "torch_compile_mode": "default",
    "use_liger_kernel": True, "liger_kernel_config": {"rope": False}, "neftune_noise_alpha": 5.0,
    "label_smoothing_factor": 0.1, "auto_find_batch_size": True, "deepspeed": {"stage": 3},
    "fsdp": True, "parallelism_config": {"tp_size": 2}, "remove_unused_columns": True,
    "load_best_model_at_end": True, "data_seed": 1, "train_sampling_strategy": "sequential",
    "eval_strategy": "steps", "eval_on_start": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [*trainer_settings.REFUSED, *trainer_settings._GRPO_ONLY, *trainer_settings._SFT_ONLY]
)
def test_settings_that_are_not_honoured_are_refused(name: str) -> None:
    """Set after transformers' own checks, some of which need packages and devices."""
    args = config()
    check_grpo_config(args, MODEL, GROUP, GROUP, sharded=False, pathwise=False)
    plain = TrainingArguments("unused", use_cpu=True, remove_unused_columns=False)
    check_arguments(plain)
    for given in (args, plain):
        setattr(given, name, BAD[name])
    if name not in trainer_settings._SFT_ONLY:
        with pytest.raises(ConfigError, match=rf"^{name} = "):
            check_grpo_config(args, MODEL, GROUP, GROUP, sharded=False, pathwise=False)
    if hasattr(TrainingArguments, name) and name not in trainer_settings._GRPO_ONLY:
        with pytest.raises(ConfigError, match=rf"^{name} = "):
            check_arguments(plain)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"num_generations": 8}, {}, "num_generations = 8.*which is 4"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3,
             "per_device_train_batch_size": 4},
            {},
            "steps_per_generation = 3",
        ),
        ({"num_iterations": 2}, {"pathwise": True}, "pathwise"),
        (
            {"activation_checkpointing_kwargs": {"use_reentrant": True}},
            {"pathwise": True},
            "use_reentrant",
        ),
        ({"num_iterations": 3, "save_strategy": "steps", "save_steps": 4}, {}, "save_steps = 4"),
        ({"use_adaptive_entropy": True}, {"sharded": True}, "use_adaptive_entropy"),
    ],
)  # fmt: skip
def test_combinations_that_are_not_honoured_are_refused(
    changes: dict[str, Any], given: dict[str, bool], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_grpo_config(
            config(**changes), MODEL, GROUP, GROUP, **{"sharded": False, "pathwise": False} | given
        )


def test_refusals_come_before_work(
    build: Callable[..., SparsityForcingTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's constructor, which would load the reference, has not run."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", None)
    with pytest.raises(ConfigError, match=r"generation_kwargs = .*top_p"):
        build(generation_kwargs={"top_p": 0.9})


# -- sampling -----------------------------------------------------------------------------------


def test_truncated_sampling_is_transformers() -> None:
    """Frequencies of 4,000 draws; the most likely token is forbidden and therefore excluded."""
    probabilities = torch.tensor([0.4, 0.3, 0.16, 0.1, 0.04])
    for settings, allowed in (
        ({"top_k": 2, "top_p": 1.0, "min_p": 0.0}, [1, 2]),
        ({"top_k": 0, "top_p": 0.7, "min_p": 0.0}, [1, 2]),  # 0.5 and 0.27 of what is left
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.3}, [1, 2, 3]),
        ({"top_k": 3, "top_p": 0.7, "min_p": 0.9}, [1]),
    ):
        limits = truncations(**settings)  # type: ignore[arg-type]
        sampling = Sampled(1.0, [0], range(4000), 5, torch.device("cpu"), limits)
        sampling.draw(4000)
        drawn, logps = (part[:, 0] for part in sampling(probabilities.log().expand(4000, -1)))
        shares = drawn.bincount(minlength=5) / 4000
        expected = torch.zeros(5)
        expected[allowed] = probabilities[allowed] / probabilities[allowed].sum()
        assert torch.allclose(shares, expected, atol=0.03), settings
        assert torch.allclose(logps, probabilities.log()[drawn]), "of the whole vocabulary"


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_trainer_heeds_sampling_settings(
    build: Callable[..., SparsityForcingTrainer], changes: dict[str, Any]
) -> None:
    """Each setting leaves only the most likely token, so the seed has no effect."""
    answers = []
    for seed in (3, 4):
        trainer = build(str(seed), max_steps=1, beta=0.0, seed=seed, **changes)
        trainer.train()
        answers.append(trainer.rollout.completion_ids)
    assert answers[0] == answers[1]


# -- rollouts that serve several steps ----------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"per_device_train_batch_size": 4, "steps_per_generation": 2}, {"num_iterations": 2}],
    ids=["two halves", "twice"],
)
def test_rollouts_of_one_generation_serve_several_steps(
    build: Callable[..., SparsityForcingTrainer],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    """The second step's loss uses the first one's rollouts, under their kept sets."""
    trainer = build(learning_rate=1e-9, lr_scheduler_type="constant", **changes)
    seen: list[tuple[Any, list[int], float]] = []
    loss_of = SparsityForcingTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = loss_of(self, model, inputs, *args, **kwargs)
        gap = (self._train_logps - inputs["sampling_per_token_logps"]) * inputs["completion_mask"]
        seen.append((self.rollout, inputs["rollout"].tolist(), float(gap.abs().max())))
        return loss

    monkeypatch.setattr(SparsityForcingTrainer, "compute_loss", compute_loss)
    trainer.train()
    (first, rows, gap), (second, more, again) = seen
    assert first is second
    assert sorted(rows + more if "steps_per_generation" in changes else rows) == list(range(8))
    assert max(gap, again) < 2e-5
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert ["logp_gap" in line for line in lines] == [True, False], "the policy has moved on"


def test_several_generations_of_a_step_draw_other_noise(
    build: Callable[..., SparsityForcingTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    seeds_of = generation.sampling_seeds

    def note(*args: Any) -> list[int]:
        drawn.append(seeds_of(*args))
        return drawn[-1]

    monkeypatch.setattr(generation, "sampling_seeds", note)
    build(gradient_accumulation_steps=2, steps_per_generation=1, max_steps=2, beta=0.0).train()
    assert len({seed for seeds in drawn for seed in seeds}) == 4 * 8


def test_reused_rollouts_resume_to_the_same_weights(
    build: Callable[..., SparsityForcingTrainer], tmp_path: Path
) -> None:
    settings = {"num_iterations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, parts = build("whole", **settings), build("parts", **settings)
    whole.train()
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    state, expected = parts.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


# -- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 2, "num_generations_eval": 2}])
def test_evaluations_leave_training_alone(
    build: Callable[..., SparsityForcingTrainer], changes: dict[str, Any]
) -> None:
    """An evaluation after every step, also between two steps on the same rollouts."""
    lines = []
    for evaluated in (False, True):
        more = {"eval_strategy": "steps", "eval_steps": 1} if evaluated else {}
        trainer = build(str(evaluated), evaluated, max_steps=3, logging_steps=3, **more, **changes)
        trainer.train()
        lines.append([line for line in trainer.state.log_history if "loss" in line])
        evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    (alone,), (between,) = lines
    timed = {"step_time"}
    assert {k: v for k, v in alone.items() if k not in timed} == {
        k: v for k, v in between.items() if k not in timed
    }
    assert len(evaluations) == 3
    for line in evaluations:
        own = set(line) - {"step", "epoch"}
        assert all(name.startswith("eval_") for name in own)
        assert {"eval_token_ratio", "eval_logp_gap", "eval_accuracy", "eval_kl"} <= own
        assert line["eval_logp_gap"] < 2e-5
    assert evaluations[0]["eval_token_ratio"] != alone["token_ratio"]


def test_an_evaluation_does_not_move_the_dual_variable(
    build: Callable[..., SparsityForcingTrainer],
) -> None:
    trainer = build(evaluated=True)
    trainer.pathwise = PathwiseWeight(1.0, False, "even", "constant", 2, 0.25, 20.0)
    trainer.evaluate()
    assert trainer.pathwise.dual == 1.0


# -- the loss -----------------------------------------------------------------------------------


def first_gradient(trainer: SparsityForcingTrainer) -> tuple[dict[str, Any], torch.Tensor, Any]:
    """The first batch, its loss and the gradient of the head."""
    model: Any = trainer.model
    inputs = first_batch(trainer)
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return inputs, loss.detach(), model.lm_head.weight.grad


def test_entropy_bonus_has_a_gradient(build: Callable[..., SparsityForcingTrainer]) -> None:
    """Against the gradient of the entropies themselves."""
    weight = 0.3
    _, _, plain = first_gradient(build("plain"))
    trainer = build("bonus", entropy_coef=weight)
    inputs, _, with_bonus = first_gradient(trainer)
    model: Any = trainer.model
    model.zero_grad()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    _, entropies, _ = trainer._get_per_token_logps_and_entropies(
        model, ids, mask, inputs["completion_ids"].shape[1], compute_entropy=True
    )
    counted = inputs["completion_mask"]
    (-weight * (entropies * counted).sum() / counted.sum()).backward()
    assert torch.allclose(with_bonus, plain + model.lm_head.weight.grad, atol=1e-5)
    assert model.lm_head.weight.grad.abs().max() > 1e-3


def test_truncated_completions_are_masked(build: Callable[..., SparsityForcingTrainer]) -> None:
    trainer = build(mask_truncated_completions=True, beta=0.0)
    ends = list(range(0, len(trainer._tokenizer), 5))
    trainer.eos_token_ids, trainer.sampler = ends, replace(trainer.sampler, eos_token_ids=ends)
    inputs, loss, _ = first_gradient(trainer)
    answers = [trainer.rollout.completion_ids[at] for at in inputs["rollout"].tolist()]
    ended = torch.tensor([ids[-1] in ends for ids in answers])
    assert 0 < ended.sum() < len(ended)
    assert torch.equal(inputs["completion_mask"].any(1), ended)
    # The ratio is 1 at every token, so a rollout's loss is its advantage with the sign turned.
    assert torch.allclose(loss, -(inputs["advantages"] * ended).mean(), atol=1e-6)


def test_completions_are_logged(
    build: Callable[..., SparsityForcingTrainer], tmp_path: Path
) -> None:
    trainer = build(log_completions=True, num_completions_to_print=1, max_steps=1)
    trainer.train()
    table = pd.read_parquet(tmp_path / "run" / "completions" / "completions_00001.parquet")
    assert len(table) == 8
    assert list(table["efficiency"]) == pytest.approx(
        (1 - trainer.rollout.token_ratio).tolist(), abs=1e-6
    )
