"""Internals of TRL and transformers that training relies on."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from tiny_world import parameters
from trl import GRPOTrainer

from sf.models import FAMILIES
from sf.training.generation import RolloutGeneration
from sf.training.resumable_trainer import ResumableTrainer
from sf.training.settings import grpo_config, micro_batch, sft_arguments
from sf.training.trainer import OVERRIDDEN, SparsityForcingTrainer

SIGNATURES = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_get_per_token_logps_and_entropies": [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
        "compute_entropy", "compute_aux_loss", "pixel_values", "image_grid_thw", "num_images",
        "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids",
        "mm_token_type_ids", "image_position_ids",
    ],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
}  # fmt: skip


def test_trl_is_the_pinned_one() -> None:
    assert version("trl").startswith("1.16.")


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_signatures_of_overridden_private_names(name: str) -> None:
    method = inspect.unwrap(getattr(GRPOTrainer, name))
    assert list(inspect.signature(method).parameters) == SIGNATURES[name]


def test_every_overridden_private_name_is_listed() -> None:
    written = {*vars(SparsityForcingTrainer), *vars(RolloutGeneration), *vars(ResumableTrainer)}
    own = {name for name in written if hasattr(GRPOTrainer, name)}
    assert {name for name in own if name.startswith("_") and not name.startswith("__")} == set(
        OVERRIDDEN
    )


def test_callers_of_overridden_names_in_trl() -> None:
    """TRL's loss reads these; a renamed output would be ignored without an error."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    for name in ("advantages", "ref_per_token_logps", "completion_mask", "prompt_ids"):
        assert f'inputs["{name}"]' in source
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'output["sampling_per_token_logps"]' in source
    assert "self.ref_model," in source


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_models_take_encoder_outputs(family: str) -> None:
    assert "mm_encoder_outputs" in inspect.signature(FAMILIES[family].forward).parameters


def test_papers_settings() -> None:
    config = grpo_config(parameters(), "unused", world_size=1)
    assert (config.loss_type, config.scale_rewards) == ("grpo", "group")
    assert config.use_bias_correction_kl is False
    assert (config.beta, config.epsilon, config.num_generations) == (0.1, 0.2, 4)
    assert config.num_iterations == 1
    assert config.shuffle_dataset is False


def test_every_parameter_reaches_the_trainers_settings() -> None:
    """Values that are nobody's default; the supervised trainer's are the same."""
    common = {
        "steps": 7, "learning_rate": 2e-3, "lr_schedule": "constant", "weight_decay": 0.3,
        "max_grad_norm": 0.7, "gradient_checkpointing": True, "save_every": 3, "log_every": 2,
    }  # fmt: skip
    for objective, build in (("sparsity_forcing", grpo_config), ("zipvl_sft", sft_arguments)):
        p = parameters(objective, 11, "bfloat16", **common, collapse={"patience": 9})
        config = build(p, "unused", world_size=1)
        assert (config.max_steps, config.seed, config.bf16) == (7, 11, True)
        assert (config.learning_rate, config.lr_scheduler_type) == (2e-3, "constant")
        assert (config.weight_decay, config.max_grad_norm) == (0.3, 0.7)
        assert (config.gradient_checkpointing, config.logging_steps) == (True, 2)
        assert (config.save_steps, config.save_total_limit) == (3, 4)
        assert config.logging_nan_inf_filter is False
    grpo = {"beta": 0.3, "clip_epsilon": 0.15, "temperature": 0.6, "sampling_top_p": 0.95}
    config = grpo_config(parameters(**grpo), "unused", world_size=1)
    assert (config.beta, config.epsilon) == (0.3, 0.15)
    assert (config.temperature, config.top_p) == (0.6, 0.95)
    assert config.max_completion_length == 4


@pytest.mark.parametrize(
    ("questions", "forward", "world", "expected"),
    [(2, 8, 1, (8, 1)), (2, 3, 1, (2, 4)), (2, 8, 2, (4, 1)), (4, 2, 2, (2, 4)), (1, 8, 4, (1, 1))],
)
def test_micro_batches_hold_all_rollouts(
    questions: int, forward: int, world: int, expected: tuple[int, int]
) -> None:
    p = parameters(questions_per_step=questions, rollouts_per_forward=forward)
    size, forwards = micro_batch(p, world)
    assert (size, forwards) == expected
    assert size * forwards * world == questions * p.objective.group_size
