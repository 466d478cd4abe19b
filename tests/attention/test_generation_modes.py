"""In every mode of `generate`, the prompt is pruned once and every new token is kept."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from tiny_models import FAMILIES, batch, build, generate, prompt, text_model
from transformers import DynamicCache, StaticCache

from sf import FixedMask, TopP, sparsify
from sf.attention import PrunedLayer, sparse_projections
from sf.attention.forward_state import ForwardState
from sf.errors import ConfigError

SPARSE = TopP(p=[0.5, 0.8, 0.95])


def test_without_a_cache_every_step_gives_the_same(model, inputs):
    with sparsify(model, SPARSE) as trace:
        cached = generate(model, inputs)
        ratios = trace.layer_ratios
        plain = generate(model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    assert (torch.stack(cached.logits) - torch.stack(plain.logits)).abs().max() <= 1e-5
    assert torch.equal(trace.layer_ratios, ratios)


def test_beams_equal_those_found_without_a_cache(model, inputs):
    with sparsify(model, SPARSE) as trace:
        beams = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
        cached = generate(model, inputs, **beams)
        plain = generate(model, inputs, use_cache=False, **beams)
    assert torch.equal(cached.sequences, plain.sequences)
    assert (cached.sequences_scores - plain.sequences_scores).abs().max() <= 1e-5
    assert trace.kept[0].shape[0] == 9


def test_sampling_draws_from_the_same_distribution_with_and_without_a_cache(model, inputs):
    sampled = []
    for cached in (True, False):
        torch.manual_seed(7)
        with sparsify(model, SPARSE):
            drawn = generate(model, inputs, do_sample=True, temperature=2.0, use_cache=cached)
        sampled.append(drawn.sequences)
    assert torch.equal(*sampled)
    assert not torch.equal(sampled[0], generate(model, inputs).sequences)


def test_from_embeddings(rows):
    model = text_model()
    row = {key: rows[2][key] for key in ("input_ids", "attention_mask")}
    embeds = model.get_input_embeddings()(row["input_ids"])
    with sparsify(model, TopP(p=0.6)) as trace:
        by_ids = generate(model, row).sequences[:, -6:]
        kept = trace.kept[1]
        by_embeds = generate(
            model, {"inputs_embeds": embeds, "attention_mask": row["attention_mask"]}
        ).sequences
    assert torch.equal(by_ids, by_embeds)
    assert torch.equal(kept, trace.kept[1])


@pytest.mark.parametrize("how", ["lookup", "assistant"])
def test_assisted_decoding_equals_plain_decoding(how):
    model, assistant = text_model(), text_model(1)
    torch.manual_seed(0)
    ids = torch.randint(3, 20, (1, 40))
    ids[:, 20:] = ids[:, :20]  # something to look up
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    extra = {"prompt_lookup_num_tokens": 4} if how == "lookup" else {"assistant_model": assistant}
    with sparsify(model, TopP(p=0.7)) as trace:
        plain = model.generate(**row, max_new_tokens=12, do_sample=False)
        lengths = trace.kv_lengths
        helped = model.generate(**row, max_new_tokens=12, do_sample=False, **extra)
    assert torch.equal(plain, helped)
    assert trace.kept[0].shape[1] == 40
    assert (trace.kv_lengths - lengths).abs().max() <= 5  # rejected candidates at the end


@pytest.mark.parametrize("drafted", [1, 4])
def test_an_assistant_under_a_method_of_its_own(drafted):
    """When the first draft is rejected whole, transformers lets it read the prompt's end again."""
    model, assistant = text_model(), text_model(1)
    assistant.generation_config.num_assistant_tokens = drafted
    assistant.generation_config.assistant_confidence_threshold = 0
    ids = torch.randint(3, 20, (1, 40), generator=torch.Generator().manual_seed(0))
    asked = {"max_new_tokens": 12, "do_sample": False}
    with sparsify(model, TopP(p=0.7)), sparsify(assistant, TopP(p=0.7)) as trace:
        plain, draft = model.generate(ids, **asked), assistant.generate(ids, **asked)
        assert plain[0, 40] != draft[0, 40]
        helped = model.generate(ids, assistant_model=assistant, **asked)
    assert torch.equal(plain, helped)
    assert trace.kept[0].shape[1] == 40
    assert not trace.kept[0].all()


def test_chunked_prefill_is_refused(model, inputs):
    with sparsify(model, SPARSE), pytest.raises(ConfigError, match="prefill_chunk_size"):
        generate(model, inputs, prefill_chunk_size=8)


@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_caches_that_cannot_shrink_are_refused(kind, rows):
    model = text_model()
    row = {key: rows[2][key] for key in ("input_ids", "attention_mask")}
    if kind == "static":
        row["past_key_values"] = StaticCache(config=model.config, max_cache_len=64)
        run, error = model, r"past_key_values = 'StaticCache'"
    else:
        row |= {"cache_implementation": "offloaded", "max_new_tokens": 2}
        run, error = model.generate, r"past_key_values = 'DynamicCache'"
    with sparsify(model, TopP(p=0.5)), pytest.raises(ConfigError, match=error):
        run(**row)


def test_a_cache_given_by_the_user_is_pruned_in_place(model, inputs):
    cache = DynamicCache()
    with sparsify(model, SPARSE) as trace:
        generate(model, inputs, past_key_values=cache)
    assert all(isinstance(layer, PrunedLayer) for layer in cache.layers)
    widest = [layer.keys.shape[-2] for layer in cache.layers]
    assert widest == trace.kv_lengths.max(-1).values.tolist()
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_and_inference_mode(family, dtype):
    """With the same kept sets, the error is at most twice that of dense attention."""
    model, exact = build(family).to(dtype), build(family).to(dtype).double()
    given = batch([prompt("image", 9, 1), prompt("text", 20, 3)])

    def logits(of, policy):
        pixels = given["pixel_values"].to(of.dtype)
        with torch.inference_mode(), sparsify(of, policy) as trace:
            return of(**{**given, "pixel_values": pixels}).logits[:, -1].double(), trace.kept

    sparse, kept = logits(model, TopP(p=[0.6, 0.9]))
    assert not all(bool(layer[given["attention_mask"].bool()].all()) for layer in kept)
    error = (sparse - logits(exact, FixedMask(kept))[0]).abs().mean()
    dense = TopP(p=1.0)
    assert error <= 2 * (logits(model, dense)[0] - logits(exact, dense)[0]).abs().mean()
    with torch.inference_mode(), sparsify(model, TopP(p=[0.6, 0.9])):
        output = generate(model, {**given, "pixel_values": given["pixel_values"].to(dtype)})
    assert torch.stack(output.logits).isfinite().all()


@pytest.mark.parametrize("lean", [False, True])
def test_a_model_dispatched_by_a_device_map(model, inputs, tmp_path, monkeypatch, lean):
    """Layers whose weights stay on disk until accelerate's hooks load them for a call."""
    monkeypatch.setattr(sparse_projections, "LEAST_COLUMNS", 1 if lean else 10**6)
    with sparsify(model, SPARSE) as trace:
        expected = generate(model, inputs)
    copy = build(model.config.model_type)
    places = dict.fromkeys(["model.visual", "lm_head"], "cpu")
    text = "model.language_model"
    places |= dict.fromkeys([f"{text}.{n}" for n in ("embed_tokens", "norm", "rotary_emb")], "cpu")
    places |= {f"{text}.layers.{n}": "disk" if n else "cpu" for n in range(3)}
    copy = dispatch_model(copy, places, main_device="cpu", offload_dir=tmp_path)
    assert copy.get_decoder().layers[1].self_attn.q_proj.weight.is_meta
    before = [sorted(vars(module)) for module in copy.modules()]
    with sparsify(copy, SPARSE) as again:
        output = generate(copy, inputs)
    assert torch.equal(expected.sequences, output.sequences)
    assert (torch.stack(expected.logits) - torch.stack(output.logits)).abs().max() <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(trace.kept, again.kept, strict=True))
    assert [sorted(vars(module)) for module in copy.modules()] == before


def test_two_devices_in_one_plan():
    """The plan's tensors follow each layer's device (here: meta stands for another device)."""
    plan = ForwardState(kind="prefill", policy=TopP(p=0.5), valid=torch.ones(1, 4).bool())
    assert plan._at("valid", plan.valid, torch.device("cpu")) is plan.valid
    moved = plan._at("valid", plan.valid, torch.device("meta"))
    assert moved.device.type == "meta"
    assert plan._at("valid", plan.valid, torch.device("meta")) is moved
