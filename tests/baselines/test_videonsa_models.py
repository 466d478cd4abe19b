"""VideoNSA in whole models: the float64 oracle, padding, decoding, gradients, refusals."""

from __future__ import annotations

import copy
import threading

import block_oracle
import pytest
import torch
from tiny_models import FAMILIES, IMAGE, PATCH, VIDEO, batch, build, generate, text_model
from torch import nn
from transformers import AttentionInterface
from with_weights import check_left_padding, equipped

from sf.attention.blocks import Replacement, VideoNsaAttention
from sf.attention.decoding import greedy
from sf.attention.trained import note_trained
from sf.baselines import apply_method, resolve
from sf.errors import ConfigError, UnsupportedModelError
from sf.models import load_model

SMALL = VideoNsaAttention(top_n=2, block=3, window=4)


@pytest.fixture(scope="module")
def equipped_models():
    return {family: equipped(build(family), SMALL, 0.1) for family in FAMILIES}


def words(count, generator):
    return torch.randint(3, 89, (count,), generator=generator)


def conversation(seed, media=("image", "video", "image")):
    """A prompt of several media with text before, between and after them."""
    generator = torch.Generator().manual_seed(seed)
    grids = {"image": [1, 4, 6], "video": [2, 4, 4]}
    parts, kinds, row = [words(4, generator)], [torch.zeros(4)], {}
    for at, kind in enumerate(media):
        grid, token = grids[kind], IMAGE if kind == "image" else VIDEO
        count, patches = grid[0] * grid[1] * grid[2] // 4, grid[0] * grid[1] * grid[2]
        parts += [torch.full((count,), token), words(2 + at, generator)]
        kinds += [torch.full((count,), 1 if kind == "image" else 2), torch.zeros(2 + at)]
        pixels = torch.randn(patches, PATCH, generator=generator)
        named = {
            "pixel_values" if kind == "image" else "pixel_values_videos": pixels,
            f"{kind}_grid_thw": torch.tensor([grid]),
        }
        for name, value in named.items():
            row[name] = torch.cat([row[name], value]) if name in row else value
    ids = torch.cat(parts)[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.cat(kinds).long()[None],
        **row,
    }


@pytest.fixture
def prompts(rows):
    """An image, a video, text alone, several media: of different lengths."""
    return [*rows, conversation(5)]


def visual_of(ids):
    return (ids == IMAGE) | (ids == VIDEO)


def oracle_attention(module, query, key, value, mask, scaling, **kwargs):
    """Of one row without padding, from the module's own gates."""
    weights = [parameter.detach().numpy() for parameter in module.videonsa.parameters()]
    heads = query.shape[1]
    gates = block_oracle.gelu_gates(module.seen[0].detach().numpy(), *weights, heads)
    parts = [part[0].detach().numpy() for part in (query, key, value)]
    out, read = block_oracle.videonsa(
        *parts, module.visual, gates, SMALL.top_n, SMALL.block, SMALL.window, scaling
    )
    module.read = read
    return torch.from_numpy(out)[None].transpose(1, 2), None


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_follows_the_oracle(family, prompts):
    """Logits and ratios of prompts with one medium, with several, and without."""
    AttentionInterface.register("videonsa_oracle", oracle_attention)
    model = equipped(build(family), SMALL, 0.1).double()
    decoder = model.get_decoder()
    for row in prompts:
        inputs = {
            name: value.double() if value.is_floating_point() else value
            for name, value in row.items()
        }
        with Replacement(model, SMALL) as trace:
            found, ratios = model(**inputs).logits, trace.layer_ratios[:, 0]
        hooks, attentions = [], [each.self_attn for each in decoder.layers]
        for module in attentions:
            module.visual = visual_of(row["input_ids"][0]).numpy()

            def note(module, args, kwargs):
                module.seen = kwargs["hidden_states"]

            hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
        decoder.config._attn_implementation = "videonsa_oracle"
        expected = model(**inputs).logits
        decoder.config._attn_implementation = "sdpa"
        for hook in hooks:
            hook.remove()
        assert (found - expected).abs().max() < 1e-10
        length = row["input_ids"].shape[1]
        tokens = [block_oracle.equivalent(module.read) / length for module in attentions]
        assert ratios.tolist() == pytest.approx(tokens)
        assert (ratios == 1).all() == (not visual_of(row["input_ids"]).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_is_the_row_alone(equipped_models, family, prompts):
    check_left_padding(equipped_models[family], SMALL, prompts, 60)


@pytest.mark.parametrize("family", FAMILIES)
def test_step_by_step_is_teacher_forced(equipped_models, family):
    model, inputs = equipped_models[family], conversation(7)
    width = inputs["input_ids"].shape[1]
    with Replacement(model, SMALL) as trace:
        steps, stepped = generate(model, inputs, 8), trace.layer_ratios
    whole = inputs | {"input_ids": steps.sequences[:, :-1]}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    whole["mm_token_type_ids"] = nn.functional.pad(inputs["mm_token_type_ids"], (0, 7))
    with Replacement(model, SMALL, width) as trace:
        logits = model(**whole).logits[0, width - 1 :]
    assert (logits - torch.stack(steps.logits)[:, 0]).abs().max() < 1e-4
    assert torch.allclose(stepped, trace.layer_ratios)
    assert trace.kv_lengths[0].tolist() == [width + 7]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decode_loop_gives_the_tokens_of_generate(equipped_models, family, prompts):
    """Decoding is dense over the whole cache, so evaluation and serving may leave the context."""
    model, inputs = equipped_models[family], batch(prompts)
    method = resolve(model)
    assert method.decodes_densely
    looped, trace = greedy(
        model, inputs, method.apply(model), decodes_densely=True, max_new_tokens=6
    )
    with method.apply(model) as expected:
        generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(looped, generated)
    assert torch.equal(trace.layer_ratios, expected.layer_ratios)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_visual_tokens_it_is_dense_bit_for_bit(equipped_models, family, rows):
    model = equipped_models[family]
    texts = batch([rows[2], {name: part[:, :11] for name, part in rows[2].items()}])
    dense = generate(model, texts)
    with Replacement(model, SMALL) as trace:
        found = generate(model, texts)
    assert torch.equal(torch.stack(found.logits), torch.stack(dense.logits))
    assert trace.token_ratio.tolist() == [1, 1]


def test_a_visual_token_does_not_see_text(equipped_models):
    """Nor does it see later visual tokens; text sees everything before it."""
    model, row = equipped_models["qwen2_5_vl"], conversation(3, ("image", "image"))
    visual = visual_of(row["input_ids"])[0]
    changed = row["input_ids"].clone()
    changed[0, 0] = 88 if changed[0, 0] != 88 else 87
    second = {"pixel_values": row["pixel_values"].clone()}
    second["pixel_values"][len(second["pixel_values"]) // 2 :] += 1
    with Replacement(model, SMALL):
        of = [
            model(**(row | change), output_hidden_states=True).hidden_states[-1][0]
            for change in ({}, {"input_ids": changed}, second)
        ]
    moved = [(of[0] - other).abs().amax(-1) > 1e-6 for other in of[1:]]
    assert torch.equal(moved[0], ~visual)
    later = visual.nonzero()[:, 0][int(visual.sum()) // 2]
    assert torch.equal(moved[1], torch.arange(len(visual)) >= later)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_gates(checkpointing):
    model, row, found = equipped(build("qwen2_5_vl"), SMALL, 0.1).train(), conversation(2), []
    for again in (False, checkpointing):
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        with Replacement(model, SMALL):
            model(**row, labels=row["input_ids"], use_cache=False).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])
    gates = [grad for name, grad in found[0].items() if ".videonsa." in name]
    assert len(gates) == 3 * 4
    assert all(grad.abs().max() > 0 for grad in gates[:8])  # the last layer's may be small
    step = 1e-3
    name = "layers.1.self_attn.videonsa.outer.bias"
    (bias,) = (p for n, p in model.named_parameters() if n.endswith(name))
    (slope,) = (grad for n, grad in found[0].items() if n.endswith(name))
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            bias[0] += sign * step
        with Replacement(model, SMALL), torch.no_grad():
            losses.append(float(model(**row, labels=row["input_ids"], use_cache=False).loss))
        with torch.no_grad():
            bias[0] -= sign * step
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(slope[0]), abs=2e-3)


def test_gates_start_at_a_half():
    model = build("qwen2_5_vl")
    note_trained(model, SMALL)
    module = model.get_decoder().layers[0].self_attn
    assert sum(p.numel() for p in module.videonsa.parameters()) == 48 * 49 + 49 * 18
    gates = module.videonsa.gates(torch.randn(1, 50, 48))
    assert gates.shape == (3, 1, 6, 50)
    assert (gates - 0.5).abs().max() < 0.2
    assert (gates - 0.5).abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_with_its_gates(equipped_models, family, tmp_path):
    model, row = equipped_models[family], conversation(9)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert resolve(loaded).name == "videonsa"
    with Replacement(model, SMALL):
        expected = model(**row).logits
    for name in ("trained", "videonsa"):
        with apply_method(loaded, name) as trace:
            assert torch.equal(loaded(**row).logits, expected)
            usual = float(trace.token_ratio)
    with apply_method(loaded, "videonsa", 99) as trace:
        assert not torch.equal(loaded(**row).logits, expected)
        assert float(trace.token_ratio) > usual
    for method in ("zipvl", "nsa", "fastv"):
        with pytest.raises(UnsupportedModelError, match=r"videonsa|objective nsa"):
            apply_method(loaded, method)


def test_threads_do_not_mix_their_prompts(equipped_models):
    model, found = equipped_models["qwen2_vl"], {}
    many = [
        conversation(seed, media) for seed, media in enumerate([("image",), ("video", "image")])
    ]

    def answer(at):
        found[at] = [generate(model, many[at], 3).sequences for _ in range(4)]

    with Replacement(model, SMALL):
        expected = [generate(model, row, 3).sequences for row in many]
        threads = [threading.Thread(target=answer, args=(at,)) for at in range(len(many))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for at, sequences in enumerate(expected):
        assert all(torch.equal(other, sequences) for other in found[at])


def test_a_copy_is_a_model_of_its_own():
    model, row = equipped(build("qwen2_vl"), SMALL, 0.1), conversation(6)
    dense = model(**row).logits
    with Replacement(model, SMALL):
        sparse, twin = model(**row).logits, copy.deepcopy(model)
        assert torch.equal(twin(**row).logits, dense)
        with Replacement(twin, SMALL):
            assert torch.equal(twin(**row).logits, sparse)
    assert torch.equal(model(**row).logits, dense)


def test_what_cannot_run_says_what_to_do(equipped_models):
    plain, row = build("qwen2_vl"), conversation(1)
    with pytest.raises(UnsupportedModelError, match="objective videonsa"):
        apply_method(plain, "videonsa")
    with pytest.raises(ConfigError, match="objective videonsa"):
        Replacement(plain, SMALL)
    with pytest.raises(UnsupportedModelError, match="names no image or video token"):
        Replacement(equipped(text_model(), SMALL, 0.1), SMALL)
    model = equipped_models["qwen2_vl"]
    with Replacement(model, SMALL):
        embeds = model.get_input_embeddings()(row["input_ids"])
        with pytest.raises(ConfigError, match="call the model with input_ids"):
            model(inputs_embeds=embeds, attention_mask=row["attention_mask"])
        cache = model(**row).past_key_values
        longer = torch.ones(1, 2 * row["input_ids"].shape[1], dtype=torch.long)
        with pytest.raises(ConfigError, match="whole conversation as one prompt"):
            model(**(row | {"attention_mask": longer}), past_key_values=cache)
