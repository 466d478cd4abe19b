"""Unusual modes of `generate`: exactly right, or refused with one error before the model runs."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import generate, prompt, text_model
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    Qwen2ForCausalLM,
    StaticCache,
)

from sf import TopP, sparsify
from sf.attention.blocks import MobaAttention, Replacement
from sf.errors import ConfigError

POLICY = TopP(p=0.6)
DENSE = TopP(p=1.0)


@pytest.fixture(scope="module")
def model():
    return text_model()


@pytest.fixture
def row():
    given = prompt("text", 24, 3)
    return {key: given[key] for key in ("input_ids", "attention_mask")}


def tokens(model, inputs, **kwargs):
    return generate(model, inputs, **kwargs).sequences


def static(model):
    return StaticCache(config=model.config, max_cache_len=40)


def filled(model, row):
    cache = DynamicCache()
    model(row["input_ids"][:, :10], past_key_values=cache)
    return cache


REFUSED = {
    "static": ({"cache_implementation": "static"}, "cache_implementation"),
    "offloaded": ({"cache_implementation": "offloaded"}, "cache_implementation"),
    "quantized": ({"cache_implementation": "quantized"}, "cache_implementation"),
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale"),
    "early exit": ({"assistant_early_exit": 2}, "assistant_early_exit"),
    "chunks": ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
    "attentions": ({"output_attentions": True}, "output_attentions"),
    "a static cache": (lambda m, _: {"past_key_values": static(m)}, "past_key_values"),
    "a cache from outside": (
        lambda m, row: {"past_key_values": filled(m, row)},
        "filled outside the context",
    ),
    "settings": (
        lambda *_: {"generation_config": GenerationConfig(guidance_scale=2.0)},
        "guidance_scale",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("whole_kv", [False, True])
def test_what_a_selection_cannot_do_is_refused_before_work(model, row, name, whole_kv):
    given, text = REFUSED[name]
    if whole_kv and name in ("offloaded", "quantized"):
        pytest.skip("a whole cache may be of any growing kind")
    given = given(model, row) if callable(given) else given
    forwards = []
    hook = model.register_forward_hook(lambda *_: forwards.append(1))
    with sparsify(model, TopP(p=0.6, whole_kv=whole_kv)) as trace:
        with pytest.raises(ConfigError, match=text):
            model.generate(**row, max_new_tokens=2, **given)
        assert trace.valid is None
    hook.remove()
    assert not forwards


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"quantized", "offloaded", "chunks"}))
def test_without_a_selection_everything_of_transformers_works(model, row, name):
    given, _ = REFUSED[name]

    def run():
        own = given(model, row) if callable(given) else given
        return model.generate(**row, max_new_tokens=3, do_sample=False, **own)

    try:
        expected = run()
    except (ValueError, TypeError, ImportError) as error:
        with sparsify(model, DENSE), pytest.raises(type(error)):
            run()
        return
    with sparsify(model, DENSE):
        assert torch.equal(run(), expected)


def test_settings_of_the_model_and_of_positional_arguments_are_seen(row):
    model = text_model()
    with sparsify(model, POLICY):
        with pytest.raises(ConfigError, match="guidance_scale"):
            model.generate(row["input_ids"], GenerationConfig(guidance_scale=2.0))
        model.generation_config.guidance_scale = 2.0
        with pytest.raises(ConfigError, match="guidance_scale"):
            model.generate(row["input_ids"], max_new_tokens=2)
    model.generation_config.guidance_scale = None
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with sparsify(model, POLICY), pytest.raises(ConfigError, match="output_attentions"):
        model(**row)


def test_outputs_that_are_asked_for(row):
    eager = text_model()
    eager.set_attn_implementation("eager")
    plain = eager(**row, output_attentions=True, output_hidden_states=True)
    with sparsify(eager, DENSE):
        same = eager(**row, output_attentions=True, output_hidden_states=True)
    for sparse, own in zip((*same.attentions, *same.hidden_states),
                         (*plain.attentions, *plain.hidden_states), strict=True):  # fmt: skip
        assert torch.equal(sparse, own)
    with sparsify(eager, POLICY):
        states = eager(**row, output_hidden_states=True).hidden_states
        with pytest.raises(ConfigError, match="output_attentions"):
            eager(**row, output_attentions=True)
    assert len(states) == 4
    assert torch.equal(states[0], plain.hidden_states[0])
    assert not torch.equal(states[-1], plain.hidden_states[-1])
    with (
        Replacement(eager, MobaAttention(2, 4)),
        pytest.raises(ConfigError, match="output_attentions"),
    ):
        eager(**row, output_attentions=True)


@pytest.mark.parametrize("assistant", ["other", "same", "lookup"])
def test_assisted_decoding_is_plain_decoding(model, row, assistant):
    other = Qwen2ForCausalLM(model.config).eval()
    given = {
        "other": {"assistant_model": other},
        "same": {"assistant_model": model},
        "lookup": {"prompt_lookup_num_tokens": 2},
    }[assistant]
    for context in (sparsify(model, POLICY), Replacement(model, MobaAttention(2, 4))):
        with context as trace:
            expected, ratio = tokens(model, row), trace.token_ratio
            with_help = model.generate(
                **row, max_new_tokens=6, min_new_tokens=6, do_sample=False,
                suppress_tokens=[90, 91, 92, 93], **given,
            )  # fmt: skip
            assert torch.equal(with_help, expected)
            if assistant != "same":
                assert torch.equal(trace.token_ratio, ratio)


def test_empty_ids_beside_embeddings(model, row):
    embeds = model.get_input_embeddings()(row["input_ids"])
    given = {"inputs_embeds": embeds, "attention_mask": row["attention_mask"]}
    for cached in (True, False):
        with sparsify(model, POLICY) as trace:
            expected, ratio = tokens(model, row, use_cache=cached)[:, 24:], trace.token_ratio
            for empty in ({}, {"input_ids": row["input_ids"][:, :0]}):
                assert torch.equal(tokens(model, given | empty, use_cache=cached), expected)
                assert torch.equal(trace.token_ratio, ratio)


@pytest.mark.parametrize("whole_kv", [False, True])
def test_a_cache_of_the_context_and_its_copy_go_on(model, row, whole_kv):
    more = {"input_ids": torch.tensor([[7, 8, 9]])}
    ids = torch.cat([row["input_ids"], more["input_ids"]], dim=1)
    with sparsify(model, TopP(p=0.6, whole_kv=whole_kv)), torch.no_grad():
        cache = model(**row).past_key_values
        twin = copy.deepcopy(cache)
        expected = model(**more, past_key_values=cache).logits
        assert torch.equal(model(**more, past_key_values=twin).logits, expected)
        again = model(**row).past_key_values
        reply = model.generate(ids, past_key_values=again, max_new_tokens=1, do_sample=False)
        assert reply[0, -1] == expected[0, -1].argmax()


def test_a_cache_that_was_read_dense_inside_goes_on_under_a_selection(model, row):
    with sparsify(model, DENSE):
        cache = model(**row).past_key_values
    with sparsify(model, POLICY), torch.no_grad():
        logits = model(torch.tensor([[7]]), past_key_values=cache).logits
    whole = torch.cat([row["input_ids"], torch.tensor([[7]])], dim=1)
    assert torch.allclose(logits[:, -1], model(whole).logits[:, -1], atol=1e-5)


def test_a_forward_around_the_hooks_says_what_to_do():
    decoder = text_model().model
    with sparsify(decoder, POLICY), pytest.raises(Exception, match="call the model itself"):
        decoder.forward(input_ids=torch.ones(1, 6, dtype=torch.long))


def test_a_static_cache_has_no_known_padding(model, row):
    with sparsify(model, DENSE) as trace:
        model.generate(**row, max_new_tokens=2, do_sample=False, cache_implementation="static")
        if trace.valid is None:
            with pytest.raises(ConfigError, match="2D padding mask"):
                _ = trace.token_ratio


@pytest.mark.parametrize("how", ["cache_implementation", "past_key_values"])
def test_a_static_cache_is_named_where_every_layer_is_called(model, row, how):
    """transformers makes another mask for it, which the user did not pass."""
    given = {how: "static" if how == "cache_implementation" else static(model)}
    with sparsify(model, DENSE, skip_dropped=False):
        with pytest.raises(ConfigError, match=r"past_key_values = 'StaticCache'.*default cache"):
            model.generate(**row, max_new_tokens=2, do_sample=False, **given)
        mask = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
        with pytest.raises(ConfigError, match="attention_mask"):
            model(row["input_ids"], attention_mask=mask)


def test_a_compiled_step_on_a_static_cache_stays_one_graph(row):
    """Hooks that read the cache's length would break it: `fullgraph` refuses that."""
    settings = CompileConfig(fullgraph=True, backend="eager")
    settings._compile_all_devices = True  # not only on GPUs
    given = {"cache_implementation": "static", "compile_config": settings, "max_new_tokens": 3}
    plain = text_model().generate(**row, do_sample=False, max_new_tokens=3)
    model = text_model()
    with sparsify(model, DENSE):
        compiled = model.generate(**row, do_sample=False, **given)
    assert torch.equal(plain, compiled)
    assert model._compiled_call is not None
    torch._dynamo.reset()
