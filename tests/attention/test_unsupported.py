"""Models that cannot be sparse raise an error with the reason."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import text_model

from sf import TopP, sparsify
from sf.attention.forward_state import ForwardState
from sf.attention.layer import sparse_attention
from sf.errors import ConfigError, UnsupportedModelError

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def make(name, **changes):
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **changes})
    for suffix in ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model"):
        if hasattr(transformers, name + suffix):
            return getattr(transformers, name + suffix)(config).eval()
    raise LookupError(name)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: make("T5", d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2), "encoder-dec"),
        (lambda: make("GPT2", n_embd=16, n_layer=1, n_head=2), "self-attention layers"),
        (lambda: make("Mamba", state_size=4), "self-attention layers"),
        (
            lambda: text_model(layer_types=["sliding_attention"] * 3),
            "full",
        ),
        (lambda: torch.nn.Linear(2, 2), "PreTrainedModel"),
    ],
)
def test_models_that_are_refused_at_once(build, match):
    with pytest.raises(UnsupportedModelError, match=match):
        sparsify(build(), TopP(p=0.5))


def test_sliding_masks_are_refused_when_they_are_asked_for():
    model = make("Gemma2", layer_types=["full_attention"] * 2, head_dim=8)
    with sparsify(model, TopP(p=0.5)), pytest.raises(UnsupportedModelError, match="is causal"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize(
    "extra", [{"softcap": 30.0}, {"s_aux": 1}, {"sliding_window": 4}, {"is_causal": False}]
)
def test_foreign_attention_is_refused_when_it_runs(extra):
    part = torch.ones(1, 1, 3, 2)
    plan = ForwardState(kind="prefill", policy=TopP(p=0.5))
    module = torch.nn.Module()
    module.layer_idx = 0
    with pytest.raises(UnsupportedModelError, match="plain causal softmax"):
        sparse_attention(module, part, part, part, None, sparse_state=plan, **extra)
    with pytest.raises(UnsupportedModelError, match="keyword arguments"):
        sparse_attention(module, part, part, part, None)


def test_a_decoder_that_ignores_the_interface_is_refused():
    """Layers with their own attention: the forward pass ends, but nothing was sparse."""
    model = text_model()
    for layer in model.model.layers:
        layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with sparsify(model, TopP(p=0.5)), pytest.raises(UnsupportedModelError, match="0 of 3 layers"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3"])
def test_other_decoders_of_the_interface_work(name):
    model = make(name, head_dim=8, sliding_window=None)
    ids = torch.randint(1, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    with sparsify(model, TopP(p=0.5)) as trace:
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert trace.token_ratio.max() < 1


def test_masks_and_packing_that_are_not_plain_padding_are_refused():
    model = text_model()
    ids = torch.ones(1, 6, dtype=torch.long)
    with sparsify(model, TopP(p=0.5)):
        with pytest.raises(ConfigError, match="2D padding mask"):
            model(input_ids=ids, attention_mask=torch.ones(1, 1, 6, 6).bool())
        with pytest.raises(ConfigError, match="over 6 columns"):
            model(input_ids=ids, attention_mask=torch.ones(1, 5))
        packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
        with pytest.raises(UnsupportedModelError, match="packed"):
            model(input_ids=ids, position_ids=packed, use_cache=False)


def test_arguments_are_checked():
    model = text_model()
    with pytest.raises(ConfigError, match="Policy"):
        sparsify(model, 0.975)
    with pytest.raises(ConfigError, match="prompt_width"):
        sparsify(model, TopP(p=0.5), prompt_width=0)
    with (
        sparsify(model, TopP(p=0.5), prompt_width=9),
        pytest.raises(ConfigError, match="8 columns"),
    ):
        model(input_ids=torch.ones(1, 8, dtype=torch.long))
    with sparsify(model, TopP(p=[0.5, 0.6])), pytest.raises(ConfigError, match="3 rows"):
        model(input_ids=torch.ones(3, 8, dtype=torch.long))
