"""Random tokens against a decoder that never sees the others; what the draw depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow_decoder import Inputs, decode, record, reply_logits
from tiny_models import IMAGE, VIDEO, generate, prompt, text_model

from sf.baselines import apply_method
from sf.baselines.random_tokens import RandomTokens
from sf.errors import ConfigError, UnsupportedModelError


def visual(row):
    ids = row["input_ids"][0]
    return set(((ids == IMAGE) | (ids == VIDEO)).nonzero()[:, 0].tolist())


def kept(model, row, ratio):
    """The columns of the prompt that every layer keeps."""
    with RandomTokens(ratio).apply(model) as trace:
        generate(model, row, 1)
    first, *others = [set(layer[0].nonzero()[:, 0].tolist()) for layer in trace.kept]
    assert all(layer == first for layer in others)
    return first


@torch.no_grad()
@pytest.mark.parametrize("media", ["image", "video"])
@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.05])
def test_equals_removing_the_tokens(model, media, ratio):
    row = prompt(media, 14, 4)
    with RandomTokens(ratio).apply(model) as trace:
        given = record(model, lambda: generate(model, row))
    left = trace.kept[0][0].nonzero()[:, 0].numpy()
    text = set(range(given.prompt)) - visual(row)
    assert text <= set(left.tolist())
    assert len(left) - len(text) == int(ratio * len(visual(row)) + 1e-9)

    columns = np.concatenate([left, np.arange(given.prompt, len(given.embeds))])
    without = Inputs(given.embeds[columns], given.positions[:, columns], len(left), given.output)
    logits, places = decode(model, without)
    reply = torch.stack(given.output.logits)[:, 0]
    assert (reply - reply_logits(logits, places, without)).abs().max() <= 1e-4
    assert trace.layer_ratios[:, 0].tolist() == pytest.approx([len(left) / given.prompt] * 3)
    assert trace.prompt_kv[:, 0].tolist() == [len(left)] * 3


@torch.no_grad()
def test_the_question_alone_decides_and_a_larger_ratio_keeps_more_of_the_same(model):
    row = prompt("image", 14, 4)
    first = kept(model, row, 0.4)
    torch.manual_seed(1)
    assert kept(model, row, 0.4) == first
    assert (
        first
        < kept(model, row, 0.7)
        < kept(model, row, 1.0)
        == set(range(len(row["input_ids"][0])))
    )
    drawn = {frozenset(kept(model, prompt("image", 14, seed), 0.4)) for seed in range(6)}
    assert len(drawn) == 6


@torch.no_grad()
def test_every_visual_token_is_drawn_about_equally_often(model):
    times = np.zeros(16)
    for seed in range(200):
        row = prompt("image", 6, seed)
        row["pixel_values"] = torch.zeros_like(row["pixel_values"])
        with RandomTokens(0.25).apply(model) as trace:
            model(**row)
        places = sorted(visual(row))
        times += trace.kept[0][0][places].numpy()
    assert times.sum() == 200 * 4
    assert times.min() > 25  # 50 expected, with a standard deviation of 6
    assert times.max() < 80


def test_text_alone_is_dense_and_other_inputs_are_refused(model):
    row = prompt("text", 20, 3)
    dense = generate(model, row)
    with apply_method(model, "random", 0.1) as trace:
        same = generate(model, row)
    assert torch.equal(dense.logits[0], same.logits[0])
    assert trace.token_ratio.tolist() == [1.0]
    with (
        pytest.raises(UnsupportedModelError, match="image or video"),
        apply_method(text_model(), "random"),
    ):
        pass
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 7, 8]]))
    with RandomTokens().apply(model), pytest.raises(ConfigError, match="input_ids"):
        model(inputs_embeds=embeds)
