"""Sparse attention leaves no trace in a model."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, build, generate
from transformers import Qwen2_5_VLForConditionalGeneration

from sf import TopP, sparsify
from sf.errors import ConfigError


@pytest.fixture(params=FAMILIES)
def model(request):
    """A new model, because a shared one could carry another test's traces."""
    return build(request.param)


def state(model):
    """Everything that `sparsify` could have changed."""
    states = []
    for name, module in model.named_modules():
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        function = getattr(module, "_gradient_checkpointing_func", None)
        states.append((name, hooks, sorted(vars(module)), type(module), function))
    decoder = model.get_decoder()
    return states, decoder.config._attn_implementation, model.config._attn_implementation


def run_and_fail(model, inputs):
    generate(model, inputs)
    raise ZeroDivisionError


def test_after_the_context_after_an_error_and_after_undo(model, inputs):
    before, dense = state(model), generate(model, inputs)
    with sparsify(model, TopP(p=0.5)):
        assert state(model) != before
        assert model.model.visual.config._attn_implementation == "sdpa"
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), sparsify(model, TopP(p=0.5)):
        run_and_fail(model, inputs)
    assert state(model) == before
    handle = sparsify(model, TopP(p=0.5))
    sparse = generate(model, inputs)
    assert handle.trace.token_ratio.max() < 1
    handle.undo()
    handle.undo()
    assert state(model) == before
    again = generate(model, inputs)
    assert torch.equal(torch.stack(dense.logits), torch.stack(again.logits))
    assert not torch.equal(torch.stack(dense.logits), torch.stack(sparse.logits))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_after_an_error_within_a_layer(model, inputs, error):
    model.train().activation_checkpointing_enable()
    before = state(model)

    def fail(*_):
        raise error

    hook = model.get_decoder().layers[1].register_forward_hook(fail)
    with pytest.raises(error), sparsify(model, TopP(p=0.5)):
        model(**inputs)
    hook.remove()
    assert state(model) == before
    with sparsify(model, TopP(p=0.5)) as trace:
        hook = model.get_decoder().layers[1].register_forward_hook(fail)
        with pytest.raises(error):
            model(**inputs)
        hook.remove()
        model(**inputs)
    assert trace.token_ratio.max() < 1
    assert state(model) == before


def test_two_at_once_are_refused(model, inputs):
    before = state(model)
    with sparsify(model, TopP(p=0.5)) as trace:
        with pytest.raises(ConfigError, match="already under"):
            sparsify(model, TopP(p=0.9))
        generate(model, inputs)
    assert trace.token_ratio.max() < 1
    assert state(model) == before


def test_two_models_do_not_share_anything(inputs):
    one, other = build("qwen2_5_vl"), build("qwen2_5_vl", seed=1)
    dense = generate(other, inputs)
    with sparsify(one, TopP(p=0.5)):
        untouched = generate(other, inputs)
        with sparsify(other, TopP(p=0.3)) as inner:
            generate(other, inputs)
    assert torch.equal(dense.logits[-1], untouched.logits[-1])
    assert inner.token_ratio.max() < 1


def test_saved_inside_the_context_it_loads_in_plain_transformers(tmp_path, inputs):
    model = build("qwen2_5_vl")
    dense = generate(model, inputs)
    with sparsify(model, TopP(p=0.5)):
        model.save_pretrained(tmp_path)
    assert "sparsity" not in (tmp_path / "config.json").read_text()
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.get_decoder().config._attn_implementation == "sdpa"
    assert torch.equal(dense.logits[-1], generate(loaded, inputs).logits[-1])


def test_a_trace_before_any_forward_says_so(model):
    with sparsify(model, TopP(p=0.5)) as trace, pytest.raises(ConfigError, match="nothing was"):
        _ = trace.token_ratio


def test_the_trace_describes_the_last_prefill(model, rows):
    with sparsify(model, TopP(p=0.5)) as trace:
        generate(model, rows[0])
        generate(model, rows[2])
    assert trace.kept[0].shape == rows[2]["input_ids"].shape
    assert trace.prompt_lengths.tolist() == [20]
    assert trace.layer_ratios.shape == (3, 1)
    assert trace.layer_ratios.mean(0).tolist() == trace.token_ratio.tolist()
    counts = torch.stack([kept.sum(-1) for kept in trace.kept])
    assert torch.equal(trace.kv_lengths, counts + 5)
    assert all(kept[0, -1] for kept in trace.kept)
