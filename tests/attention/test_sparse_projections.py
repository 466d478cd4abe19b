"""Long prompts do not project dropped tokens, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from tiny_models import batch, generate, prompt, text_model
from torch import nn
from transformers import DynamicCache

from sf import FixedMask, TopP, sparsify
from sf.attention import sparse_projections


@pytest.fixture(autouse=True)
def any_length(monkeypatch):
    monkeypatch.setattr(sparse_projections, "LEAST_COLUMNS", 1)


def rows():
    return [prompt("image", 150, 1), prompt("video", 170, 2)]


def counted(model):
    """The number of rows that the query and output projections of layer 1 get, call by call."""
    counts = {"q_proj": [], "o_proj": []}
    hooks = []
    for name, seen in counts.items():
        module = getattr(model.get_decoder().layers[1].self_attn, name)
        hooks.append(
            module.register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0].shape[1])
            )
        )
    return counts, hooks


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1, None])
def test_the_result_is_the_same_and_the_work_is_less(model, which):
    given = batch(rows()) if which is None else rows()[which]
    policy = TopP(p=0.3 if which is not None else [0.3, 0.6])
    cache, plain_cache = DynamicCache(), DynamicCache()
    with sparsify(model, policy, skip_dropped=False) as plain_trace:
        plain = generate(model, given, past_key_values=plain_cache)
    counts, hooks = counted(model)
    with sparsify(model, policy) as trace:
        lean = generate(model, given, past_key_values=cache)
    for hook in hooks:
        hook.remove()
    assert torch.equal(plain.sequences, lean.sequences)
    assert (torch.stack(plain.logits) - torch.stack(lean.logits)).abs().max() <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(trace.kept, plain_trace.kept, strict=True))
    for held, wanted in zip(cache.layers, plain_cache.layers, strict=True):
        assert held.keys.shape == wanted.keys.shape
        real = slice(None) if which is not None else slice(-5, None)
        assert (held.keys[:, :, real] - wanted.keys[:, :, real]).abs().max() <= 1e-5
    widest = int(trace.kept[1].sum(-1).max())
    assert counts["q_proj"] == [128, widest, 1, 1, 1, 1, 1]
    assert counts["o_proj"] == [widest, 1, 1, 1, 1, 1]


def test_gradients_are_the_same(model):
    given = batch(rows())
    by_form = []
    for skip in (False, True):
        model.zero_grad()
        with sparsify(model, TopP(p=[0.3, 0.6]), prompt_width=190, skip_dropped=skip):
            output = model(**given, labels=given["input_ids"], use_cache=False)
        output.loss.backward()
        by_form.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert by_form[0].keys() == by_form[1].keys()
    for name, grad in by_form[0].items():
        assert (grad - by_form[1][name]).abs().max() <= 1e-5 * max(1, grad.abs().max()), name


def test_a_recompute_after_the_context_runs_what_the_forward_ran(model):
    given, by_form = rows()[0], []
    for recomputed in (False, True):
        model.zero_grad()
        model.train()
        if recomputed:
            model.activation_checkpointing_enable()
        try:
            with sparsify(model, TopP(p=0.4), prompt_width=150) as trace:
                output = model(**given, labels=given["input_ids"])
            output.loss.backward()
        finally:
            model.activation_checkpointing_disable()
            model.eval()
        assert trace.token_ratio.max() < 1
        by_form.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert by_form[0].keys() == by_form[1].keys()
    for name, grad in by_form[0].items():
        assert (grad - by_form[1][name]).abs().max() <= 1e-5 * max(1, grad.abs().max()), name


@torch.no_grad()
def test_layers_that_keep_everything_and_kept_sets_given_beforehand(model):
    given = rows()[0]
    dense = model(**given).logits
    everything = [given["attention_mask"].bool()] * 3
    with sparsify(model, FixedMask(everything)):
        assert (model(**given).logits - dense).abs().max() <= 1e-5
    with sparsify(model, TopP(p=0.4)) as trace:
        sparse = model(**given).logits
    counts, hooks = counted(model)
    with sparsify(model, FixedMask(trace.kept)):
        replayed = model(**given).logits
    for hook in hooks:
        hook.remove()
    assert (sparse - replayed).abs().max() <= 1e-5
    assert counts["q_proj"] == [int(trace.kept[1].sum())]  # no probes


@torch.no_grad()
def test_whole_kv_keeps_the_cache_whole(model):
    given, cache = rows()[1], DynamicCache()
    with sparsify(model, TopP(p=0.4, whole_kv=True)):
        model(**given, past_key_values=cache)
    assert {layer.keys.shape[-2] for layer in cache.layers} == {given["input_ids"].shape[1]}


def test_short_prompts_and_unknown_attention_are_left_alone(monkeypatch):
    monkeypatch.setattr(sparse_projections, "LEAST_COLUMNS", 300)
    model = text_model()
    counts, _ = counted(model)
    with sparsify(model, TopP(p=0.4)), torch.no_grad():
        model(input_ids=torch.ones(1, 150, dtype=torch.long))
    assert counts["q_proj"] == counts["o_proj"] == [150]
    assert not sparse_projections.install(nn.Linear(2, 2))
    with_bias = text_model().model.layers[0].self_attn
    with_bias.o_proj = nn.Linear(48, 48, bias=True)
    assert not sparse_projections.install(with_bias)
