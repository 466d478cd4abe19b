"""The treatment of every setting of TRL's GRPOConfig and transformers' TrainingArguments.

TRL ignores some settings when completions come from a `rollout_func`, and some have no meaning for
rollouts with their own token selection. Each setting is in one of three groups: it works as
documented (`HONOURED`), it is refused unless its value changes nothing (`REFUSED`), or it depends
on another setting that is refused or absent (`INERT`). A test fails if TRL or transformers has a
setting outside these groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from transformers import TrainingArguments

from sf.errors import ConfigError
from sf.extras import extra

with extra("train"):
    from trl import GRPOConfig

__all__ = ["HONOURED", "INERT", "REFUSED", "check_arguments", "check_grpo_config"]


@dataclass(frozen=True)
class Refusal:
    """Why a setting is refused.

    Attributes:
        accepts: whether a value changes nothing or is supported.
        rule: what holds instead.
        remedy: what to do.
    """

    accepts: Callable[[Any], bool]
    rule: str
    remedy: str


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is one or value == one for one in values)


def _unset(rule: str, remedy: str = "") -> Refusal:
    """The setting must not be in force: None, False, 0 or empty."""
    return Refusal(lambda value: not value, rule, remedy or "leave it at its default")


_GENERATE = "is for `model.generate`, and completions are sampled by this trainer's own loop"
_ENCODED = "is not read: prompts are encoded with their media by the Encoder"
_BUILT = "would be ignored: model and processor are already built"
_LOSS = "has no effect on GRPO's loss"

REFUSED: Mapping[str, Refusal] = {
    # TRL: generation
    "temperature": Refusal(lambda value: value > 0, "must be above 0", "use 1.0"),
    "top_p": Refusal(lambda value: 0 < value <= 1, "must be in (0, 1]", "use 1.0 for no limit"),
    "top_k": Refusal(
        lambda value: value is None or value >= 0, "must not be negative", "use 0 for no limit"
    ),
    "min_p": Refusal(
        lambda value: value is None or 0 <= value <= 1, "must be in [0, 1]", "use None for no limit"
    ),
    "repetition_penalty": Refusal(
        _is(1.0, None),
        "samples from another distribution than the policy that is trained",
        "set it to 1.0",
    ),
    "generation_kwargs": _unset(
        _GENERATE, "use temperature, top_p, top_k, min_p and max_completion_length"
    ),
    "cache_implementation": _unset(f"{_GENERATE}, with a pruned cache"),
    "max_completion_length": Refusal(
        lambda value: value is not None and value >= 1,
        "must be a number of tokens: it ends the sampling loop",
        "set it, for instance to 256",
    ),
    "use_vllm": _unset("runs another attention than the one that is trained", "set it to False"),
    "use_transformers_continuous_batching": _unset(_GENERATE, "set it to False"),
    "use_transformers_paged": _unset(_GENERATE, "set it to False"),
    "chat_template_kwargs": _unset(_ENCODED),
    "pad_to_multiple_of": Refusal(
        _is(None, "auto"),
        "would move the prompts away from the kept tokens that the rollouts recorded",
        "set it to None",
    ),
    # TRL: models
    "model_init_kwargs": _unset(_BUILT, "build the model with them"),
    "sync_ref_model": _unset(
        "moves the reference, which is the initial model here and is not part of a checkpoint",
        "set it to False",
    ),
    "router_aux_loss_coef": _unset(
        "belongs to mixture-of-experts models, which this trainer does not support"
    ),
    # transformers: computation
    "fp16": _unset("is not supported: sums over attention rows overflow in it", "use bf16"),
    "bf16_full_eval": _unset("would evaluate other weights than are trained", "set it to False"),
    "fp16_full_eval": _unset("would evaluate other weights than are trained", "set it to False"),
    "torch_compile": _unset("cannot compile a token selection of varying size", "set it to False"),
    "torch_compile_backend": _unset("belongs to torch_compile"),
    "torch_compile_mode": _unset("belongs to torch_compile"),
    "use_liger_kernel": _unset(
        "replaces modules that the sparse attention and the loss rely on", "set it to False"
    ),
    "liger_kernel_config": _unset("belongs to use_liger_kernel"),
    "neftune_noise_alpha": _unset(
        "adds noise to the embeddings, so rollout and training would differ", "set it to None"
    ),
    "label_smoothing_factor": _unset(_LOSS, "set it to 0"),
    "auto_find_batch_size": _unset("would break groups apart", "set it to False"),
    # transformers: distribution
    "deepspeed": _unset("is not supported", "divide weights by sf.training.sharding.shard"),
    "fsdp": _unset(
        "is not supported: accelerate shards on GPUs alone and trains data parallel elsewhere",
        "divide weights by sf.training.sharding.shard",
    ),
    "parallelism_config": _unset("is not supported", "divide weights by sf.training.sharding"),
    # transformers: data
    "remove_unused_columns": _unset(
        "would remove the column `row`, by which questions are encoded", "set it to False"
    ),
    # transformers: checkpoints
    "load_best_model_at_end": _unset(
        "reads weights by names that these models are not saved under",
        "set it to False and load the best checkpoint with sf.models.load_model",
    ),
}
"""Setting -> what is accepted. transformers fills `fsdp_config` in itself: see `INERT`."""

_GRPO_ONLY = {
    "data_seed": _unset("is not read by TRL: its sampler uses `seed`", "set `seed`"),
    "train_sampling_strategy": Refusal(
        _is("random"), "is not read by TRL's sampler", "use shuffle_dataset"
    ),
}
"""Settings that transformers' own trainer heeds and TRL's does not."""

_SFT_ONLY = {
    "eval_strategy": Refusal(
        _is("no"), "is not supported: the supervised trainer has no evaluation", "set it to no"
    ),
    "eval_on_start": _unset("is not supported: the supervised trainer has no evaluation"),
}

_OF_VLLM = (
    "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex",
    "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
    "vllm_group_port", "vllm_gpu_memory_utilization", "vllm_max_model_length",
    "vllm_tensor_parallel_size", "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap",
)  # fmt: skip

INERT: Mapping[str, str] = {
    **dict.fromkeys(_OF_VLLM, "use_vllm"),
    "transformers_continuous_batching_config": "use_transformers_continuous_batching",
    "ref_model_mixup_alpha": "sync_ref_model",
    "ref_model_sync_steps": "sync_ref_model",
    "ds3_gather_for_generation": "deepspeed",
    "fsdp_config": "fsdp",
    "max_tool_calling_iterations": "tools",
    "length_column_name": "train_sampling_strategy",
}  # fmt: skip
"""Setting -> what it belongs to; without that it has no effect in TRL or transformers either."""

HONOURED = frozenset({
    # TRL: the group, the loss and the reward. TRL's own code, on this trainer's log-probabilities.
    "num_generations", "num_generations_eval", "generation_batch_size", "steps_per_generation",
    "num_iterations", "shuffle_dataset", "beta", "epsilon", "epsilon_high", "delta",
    "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos",
    "vespo_k_neg", "vespo_lambda_neg", "importance_sampling_level", "reward_weights",
    "multi_objective_aggregation", "scale_rewards", "loss_type", "mask_truncated_completions",
    "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "entropy_coef_min",
    "entropy_coef_max", "entropy_coef_delta", "entropy_target", "off_policy_mask_threshold",
    "use_bias_correction_kl", "disable_dropout", "cast_lm_head_to_fp32", "trust_remote_code",
    "log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts",
    "log_completions_hub_repo",
    # transformers: the training loop
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules",
    "gradient_accumulation_steps", "average_tokens_across_devices", "max_grad_norm", "bf16",
    "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "use_cache",
    "torch_empty_cache_steps", "seed", "full_determinism", "use_cpu", "accelerator_config",
    # transformers: logging and evaluation
    "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
    "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level", "log_level_replica",
    "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay",
    "per_device_eval_batch_size", "prediction_loss_only", "metric_for_best_model",
    "greater_is_better", "eval_on_start",
    "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
    "include_for_metrics", "batch_eval_metrics", "debug", "skip_memory_metrics", "do_train",
    "do_eval", "do_predict", "label_names",
    # transformers: checkpoints and the hub
    "save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit",
    "enable_jit_checkpoint", "resume_from_checkpoint", "ignore_data_skip",
    "restore_callback_states_from_checkpoint", "push_to_hub", "hub_token", "hub_private_repo",
    "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    # transformers: data loading and processes
    "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
    "ddp_timeout", "local_rank",
})  # fmt: skip


def _check(args: TrainingArguments, refused: Mapping[str, Refusal]) -> None:
    """
    Raises:
        ConfigError: a setting has a value that would not be honoured.
    """
    for name, refusal in refused.items():
        value = getattr(args, name, None)
        if hasattr(args, name) and not refusal.accepts(value):
            raise ConfigError(name, value, refusal.rule, refusal.remedy)


def check_arguments(args: TrainingArguments) -> None:
    """The settings of the supervised trainer.

    Raises:
        ConfigError: a setting has a value that would not be honoured.
    """
    _check(args, {**REFUSED, **_SFT_ONLY})


def check_grpo_config(
    args: GRPOConfig, model: Any, group_size: int, reward_group_size: int, *, sharded: bool,
    pathwise: bool,
) -> None:  # fmt: skip
    """The settings of `SparsityForcingTrainer`.

    Args:
        args: TRL's settings.
        model: the policy.
        group_size: of the retention schedule.
        reward_group_size: of the reward.
        sharded: weights are divided over ranks.
        pathwise: the loss has the pathwise sparsity term.

    Raises:
        ConfigError: a setting, or a combination of settings, would not be honoured.
    """
    _check(args, {**REFUSED, **_GRPO_ONLY})
    for holder, size in (("retention schedule", group_size), ("reward", reward_group_size)):
        if size != args.num_generations:
            raise ConfigError(
                "num_generations",
                args.num_generations,
                f"must be the group size of the {holder}, which is {size}",
                "build both with the same size",
            )
    text: Any = model.config.get_text_config()
    if hasattr(text, "output_router_logits") and getattr(text, "router_aux_loss_coef", None):
        raise ConfigError(
            "router_aux_loss_coef",
            text.router_aux_loss_coef,
            "mixture-of-experts models need an auxiliary loss that this trainer does not compute",
            "set it to 0 in the model's text configuration to train without",
        )
    if sharded:
        for name in ("use_adaptive_entropy", "cast_lm_head_to_fp32", "push_to_hub"):
            if getattr(args, name, False):
                rule = "is not supported with weights that are divided over ranks"
                raise ConfigError(name, True, rule, "set it to False")
    _check_reuse(args, pathwise)


def _check_reuse(args: GRPOConfig, pathwise: bool) -> None:
    """Rollouts of one generation may serve several optimiser steps, or the other way round.

    Raises:
        ConfigError: they cannot, or a resumed run would sample other rollouts.
    """
    generation, step = cast(int, args.steps_per_generation), args.gradient_accumulation_steps
    spent = generation * args.num_iterations
    if spent % step and step % spent:
        raise ConfigError(
            "steps_per_generation",
            generation,
            f"times num_iterations ({args.num_iterations}) and gradient_accumulation_steps "
            f"({step}) must divide one another: rollouts would change within an optimiser step",
            f"set it to a multiple of {step}",
        )
    checkpointing = cast(dict[str, Any], args.gradient_checkpointing_kwargs or {})
    if pathwise and checkpointing.get("use_reentrant"):
        rule = "drops the gradient of the pathwise term: its first forward has no graph"
        raise ConfigError("use_reentrant", True, rule, "set it to False")
    if pathwise and spent != step:
        raise ConfigError(
            "steps_per_generation",
            generation,
            f"times num_iterations ({args.num_iterations}) must be gradient_accumulation_steps "
            f"({step}): the pathwise weight follows one generation a step",
            f"set steps_per_generation to {step} and num_iterations to 1",
        )
    steps = spent // step
    by_steps = args.save_strategy == "steps"
    if steps > 1 and args.enable_jit_checkpoint:
        rule = "would save in the middle of a generation, which a resumed run would sample again"
        raise ConfigError("enable_jit_checkpoint", True, rule, "set it to False")
    if steps > 1 and by_steps and (args.save_steps < 1 or args.save_steps % steps):
        raise ConfigError(
            "save_steps",
            args.save_steps,
            f"must be a multiple of the {steps} optimiser steps that learn from one generation: a "
            "checkpoint does not hold rollouts, so a resumed run would sample others",
            f"set it to a multiple of {steps}",
        )
