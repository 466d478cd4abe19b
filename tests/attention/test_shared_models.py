"""Two users of one model: copies, files, threads, other models on one configuration, nested use."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from tiny_models import batch, build, generate, prompt, text_model
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model, TextIteratorStreamer

from sf import TopP, sparsify
from sf.attention.blocks import MobaAttention, Replacement
from sf.baselines import apply_method
from sf.errors import ConfigError

POLICY = TopP(p=0.6)


def row(text=24, seed=3):
    given = prompt("text", text, seed)
    return {key: given[key] for key in ("input_ids", "attention_mask")}


def tokens(model, inputs, **kwargs):
    return generate(model, inputs, **kwargs).sequences


def applied(model, name):
    if name == "moba":
        return Replacement(model, MobaAttention(2, 4))
    return apply_method(model, name, {"zipvl": 0.6, "twilight": 0.5}.get(name))


@pytest.mark.parametrize("name", ["zipvl", "full", "moba", "twilight"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_is_a_model_of_its_own(name, way):
    model, inputs = text_model(), row()
    with applied(model, name):
        during = tokens(model, inputs)
        if way == "deepcopy":
            twin = copy.deepcopy(model)
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        assert torch.equal(tokens(model, inputs), during)
        for weight in twin.parameters():
            weight.data.normal_(0, 0.3)
        fresh = Qwen2ForCausalLM(copy.deepcopy(model.config)).eval()
        fresh.load_state_dict(twin.state_dict())
        expected = tokens(fresh, inputs)
        assert torch.equal(tokens(twin, inputs), expected)
        assert torch.equal(twin(**inputs).logits, fresh(**inputs).logits)
    assert type(twin.config) is type(twin.model.config) is Qwen2Config
    assert twin.config is twin.model.config
    assert torch.equal(tokens(twin, inputs), expected)
    with applied(twin, name):
        sparse = tokens(twin, inputs)
    with applied(fresh, name):
        assert torch.equal(tokens(fresh, inputs), sparse)


def test_a_copied_layer_computes_with_its_own_weights():
    model = build("qwen2_vl")
    with sparsify(model, POLICY):
        attention = copy.deepcopy(model.get_decoder().layers[0].self_attn)
    assert attention.forward.__self__ is attention
    assert attention.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["zipvl", "moba", "full"])
def test_another_model_on_the_same_configuration_is_left_alone(name):
    config, inputs = text_model().config, row()
    torch.manual_seed(0)
    model, other = Qwen2ForCausalLM(config).eval(), Qwen2ForCausalLM(config).eval()
    before = tokens(other, inputs)
    with applied(model, name):
        sparse = tokens(model, inputs)
        assert torch.equal(tokens(other, inputs), before)
        assert model.config._attn_implementation == "sdpa"
        with sparsify(other, POLICY) as trace:
            tokens(other, inputs)
        assert trace.token_ratio.max() < 1
        assert torch.equal(tokens(model, inputs), sparse)


def test_what_is_set_on_the_configuration_inside_is_heard_and_stays():
    model, inputs = text_model(), row()
    with sparsify(model, POLICY):
        model.config.use_cache = False
        assert model(**inputs).past_key_values is None
        model.model.config.use_cache = True
        assert model(**inputs).past_key_values is not None
    assert model.config.use_cache is True


def test_another_implementation_set_inside_is_refused_and_not_blamed_on_the_model():
    model, inputs = text_model(), row()
    with sparsify(model, POLICY):
        model.model.config._attn_implementation_internal = "eager"
        sparse = model(**inputs).logits
    model.config._attn_implementation = "sdpa"
    with sparsify(model, POLICY):
        assert torch.allclose(model(**inputs).logits, sparse, atol=1e-5)
        object.__setattr__(model.model.config, "_attn_implementation", "paged|sdpa")
        with pytest.raises(ConfigError, match=r"paged.*leave the context first"):
            model(**inputs)


@pytest.mark.parametrize("first", ["zipvl", "full", "moba", "twilight"])
@pytest.mark.parametrize("second", ["zipvl", "full", "moba"])
def test_one_method_at_a_time(first, second):
    model, inputs = text_model(), row()
    with applied(model, first):
        expected = tokens(model, inputs)
        with pytest.raises(ConfigError, match="already under"), applied(model, second):
            pass
        assert torch.equal(tokens(model, inputs), expected)


def test_a_handle_can_be_entered_again_but_not_twice():
    model, inputs = text_model(), row()
    handle = sparsify(model, POLICY)
    for _ in range(2):
        with handle as trace:
            sparse = tokens(model, inputs)
            assert trace.token_ratio.max() < 1
            with pytest.raises(ConfigError, match="entered already"), handle:
                pass
            assert torch.equal(tokens(model, inputs), sparse)
        assert not torch.equal(tokens(model, inputs), sparse)


@pytest.mark.parametrize("name", ["zipvl", "full", "moba"])
def test_requests_of_several_threads_give_what_they_give_alone(name):
    model = text_model()
    requests = [batch([row(12 + 7 * at, at), row(9, 20 + at)]) for at in range(4)]
    for given in requests:
        del given["mm_token_type_ids"]
    with applied(model, name) as trace:
        alone = [tokens(model, given, use_cache=at % 2 == 0) for at, given in enumerate(requests)]
        answers: dict[int, torch.Tensor] = {}

        def ask(at):
            answers[at] = tokens(model, requests[at], use_cache=at % 2 == 0)

        for _ in range(2):
            threads = [threading.Thread(target=ask, args=(at,)) for at in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(torch.equal(answers[at], alone[at]) for at in range(4))
        widths = {given["input_ids"].shape[1] for given in requests}
        assert trace.valid.shape[1] in widths
        assert {kept.shape for kept in trace.kept} == {trace.valid.shape}


class Letters:
    """A tokenizer with one token per letter."""

    def decode(self, ids, **_):
        return "".join(chr(65 + int(token)) for token in ids)


def test_a_streamer_in_a_thread():
    model, inputs = text_model(), row()
    with sparsify(model, POLICY):
        expected = tokens(model, inputs)[0, 24:]
        streamer = TextIteratorStreamer(Letters(), skip_prompt=True)
        thread = threading.Thread(
            target=tokens, args=(model, inputs), kwargs={"streamer": streamer}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == Letters().decode(expected)


def test_a_base_model_takes_positional_arguments():
    model, ids = Qwen2Model(text_model().config).eval(), row()["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    for policy in (POLICY, TopP(p=1.0)):
        with sparsify(model, policy) as trace, torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
            ratio = trace.token_ratio
            assert torch.equal(model(ids, mask).last_hidden_state, expected)
            assert torch.equal(trace.token_ratio, ratio)
            assert trace.prompt_lengths.tolist() == [20]
        with Replacement(model, MobaAttention(2, 4)) as trace, torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
            assert torch.equal(model(ids, mask).last_hidden_state, expected)
