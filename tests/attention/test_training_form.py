"""Teacher forcing: prompt and completion in one forward pass, with gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import peft
import pytest
import torch
from oracle import MaskForm
from tiny_models import batch, build, generate, prompt, text_model
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface

from sf import FixedMask, TopP, sparsify
from sf.errors import ConfigError, UnsupportedModelError
from sf.selection import Policy

THRESHOLDS = [0.5, 0.8, 0.95]
NEW = 6


def with_completion(inputs, sequences):
    """The inputs of a teacher-forced forward pass over `sequences`."""
    width = inputs["input_ids"].shape[1]
    extra = sequences.shape[1] - width
    full = dict(inputs, input_ids=sequences)
    full["attention_mask"] = pad(inputs["attention_mask"], (0, extra), value=1)
    full["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, extra))
    return full, width


def log_probabilities(model, full, width):
    logits = model(**full, use_cache=False).logits[:, width - 1 : -1].float()
    tokens = full["input_ids"][:, width:]
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def rollout_log_probabilities(output):
    tokens = output.sequences[:, -len(output.logits) :]
    logps = torch.stack(output.logits, 1).float().log_softmax(-1)
    return logps.gather(-1, tokens[..., None])[..., 0]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_teacher_forced_equals_incremental(model, inputs):
    with sparsify(model, TopP(p=THRESHOLDS)) as trace:
        output = generate(model, inputs, NEW)
        kept = trace.kept
    full, width = with_completion(inputs, output.sequences)
    with torch.no_grad():
        with sparsify(model, TopP(p=THRESHOLDS), prompt_width=width) as trace:
            forced = log_probabilities(model, full, width)
        assert all(torch.equal(a, b) for a, b in zip(kept, trace.kept, strict=True))
        with sparsify(model, FixedMask(kept), prompt_width=width):
            replayed = log_probabilities(model, full, width)
        dense = log_probabilities(model, full, width)
    incremental = rollout_log_probabilities(output)
    assert (forced - incremental).abs().max() <= 1e-5
    assert (replayed - incremental).abs().max() <= 1e-5
    assert (dense - incremental).abs().max() > 0.1  # sparsity does matter here


def test_padding_after_a_completion_is_ignored(model, inputs):
    with sparsify(model, TopP(p=THRESHOLDS)):
        output = generate(model, inputs, NEW)
    full, width = with_completion(inputs, output.sequences)
    with sparsify(model, TopP(p=THRESHOLDS), prompt_width=width), torch.no_grad():
        whole = log_probabilities(model, full, width)
        full["attention_mask"][1, -2:] = 0
        full["input_ids"] = full["input_ids"].clone()
        full["input_ids"][1, -2:] = 0
        cut = log_probabilities(model, full, width)
    assert (whole[0] - cut[0]).abs().max() <= 1e-5
    assert (whole[1, :-2] - cut[1, :-2]).abs().max() <= 1e-5


def test_padding_after_a_completion_does_not_fit_into_a_pruned_cache(model, inputs):
    full, width = with_completion(inputs, pad(inputs["input_ids"], (0, NEW), value=5))
    full["attention_mask"][1, -2:] = 0
    with (
        sparsify(model, TopP(p=0.5), prompt_width=width),
        pytest.raises(ConfigError, match="padding after the prompt"),
    ):
        model(**full, use_cache=True)


def oracle_run(model, full, width, loss):
    """A forward pass whose attention masks instead of gathering: values, gradients, kept sets."""
    form = MaskForm(THRESHOLDS, width)
    AttentionInterface.register("mask_form", form.attention)
    AttentionMaskInterface.register("mask_form", form.mask)
    decoder = model.get_decoder()
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("mask_form")
    try:
        model.zero_grad()
        logps = log_probabilities(model, full, width)
        loss(logps).backward()
        return logps.detach(), gradients(model), form.kept
    finally:
        decoder.set_attn_implementation(before)


def test_values_and_gradients_agree_with_the_mask_form(model, inputs):
    full, width = with_completion(inputs, pad(inputs["input_ids"], (0, NEW), value=5))
    full["attention_mask"][2, -3:] = 0
    real = full["attention_mask"][:, width:].bool()

    def loss(logps):
        return logps[real].mean()

    expected, wanted, kept = oracle_run(model, full, width, loss)
    model.zero_grad()
    with sparsify(model, TopP(p=THRESHOLDS), prompt_width=width) as trace:
        logps = log_probabilities(model, full, width)
        loss(logps).backward()
    assert all(torch.equal(trace.kept[i], kept[i]) for i in range(3))
    assert (logps - expected)[real].abs().max() <= 1e-5
    trained = gradients(model)
    assert trained.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (trained[name] - grad).abs().max() <= 1e-5 * max(1, grad.abs().max()), name
    assert max(grad.abs().max() for grad in wanted.values()) > 0.1


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_also_after_the_context(model, inputs, reentrant):
    full, width = with_completion(inputs, pad(inputs["input_ids"], (0, NEW), value=5))

    def run(policy):
        model.zero_grad()
        with sparsify(model, policy, prompt_width=width) as trace:
            total = log_probabilities(model, full, width).sum()
        total.backward()
        return gradients(model), trace

    plain, _ = run(TopP(p=THRESHOLDS))
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    try:
        recomputed, trace = run(TopP(p=THRESHOLDS))
        dense_after = log_probabilities(model, full, width)
    finally:
        model.activation_checkpointing_disable()
        model.eval()
    assert trace.token_ratio.max() < 1
    assert plain.keys() == recomputed.keys()
    for name, grad in plain.items():
        assert (grad - recomputed[name]).abs().max() <= 1e-5 * max(1, grad.abs().max())
    assert torch.equal(dense_after, log_probabilities(model, full, width))


@dataclass(frozen=True)
class Undecided(Policy):
    """Keeps a different set in each call."""

    asked: list = field(default_factory=list)

    def keep(self, scores, layer):
        self.asked.append(layer)
        kept = torch.zeros_like(scores.valid)
        kept[:, len(self.asked) % 5 :: 3] = True
        return kept


def test_a_layer_that_is_recomputed_keeps_its_set(model, rows):
    policy = Undecided()
    model.train()
    model.activation_checkpointing_enable()
    try:
        with sparsify(model, policy):
            model(**rows[0]).logits.sum().backward()
    finally:
        model.activation_checkpointing_disable()
        model.eval()
    assert policy.asked == [0, 1, 2]


def test_replay_in_bfloat16_stays_near_the_rollout():
    model = build("qwen2_5_vl").to(torch.bfloat16)
    given = batch([prompt("image", 9, 1), prompt("image", 14, 2)])
    given["pixel_values"] = given["pixel_values"].bfloat16()

    def gap(policy):
        with torch.no_grad(), sparsify(model, policy) as trace:
            output = generate(model, given, NEW)
        full, width = with_completion(given, output.sequences)
        with torch.no_grad(), sparsify(model, FixedMask(trace.kept), prompt_width=width):
            forced = log_probabilities(model, full, width)
        return (forced - rollout_log_probabilities(output)).abs().max()

    # Dense attention may agree exactly by chance: one bfloat16 step of a logit near 2 is allowed.
    assert gap(TopP(p=[0.6, 0.9])) <= max(2 * gap(TopP(p=1.0)), 2**-6)


def test_peft_models_and_their_adapters(inputs):
    model = peft.get_peft_model(
        build("qwen2_vl"),
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    with sparsify(model, TopP(p=THRESHOLDS)) as trace:
        output = generate(model, inputs, NEW)
    kept = trace.kept
    full, width = with_completion(inputs, output.sequences)
    with sparsify(model, FixedMask(kept), prompt_width=width):
        logps = log_probabilities(model, full, width)
        logps.sum().backward()
    assert (logps - rollout_log_probabilities(output)).abs().max() <= 1e-5
    trained = gradients(model)
    assert trained
    assert all("lora" in name for name in trained)
    with model.disable_adapter(), sparsify(model, TopP(p=THRESHOLDS)) as trace:
        generate(model, inputs, 1)
    assert not all(torch.equal(a, b) for a, b in zip(kept, trace.kept, strict=True))


def test_prompt_learning_is_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(text_model(), config)
    with pytest.raises(UnsupportedModelError, match="virtual prompt"):
        sparsify(model, TopP(p=0.5))
