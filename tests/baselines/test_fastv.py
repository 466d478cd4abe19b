"""FastV against a decoder that removes the tokens, and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow_decoder import decode, record, reply_logits
from tiny_models import IMAGE, VIDEO, generate, prompt, text_model

from sf.baselines import apply_method
from sf.baselines.fastv import FastV
from sf.errors import ConfigError, UnsupportedModelError


def visual(row):
    ids = row["input_ids"][0]
    return ((ids == IMAGE) | (ids == VIDEO)).numpy()


def ranked(row, weights, columns, width, ratio):
    """The columns that remain: visual ones by the last prompt token's attention, all others."""
    seen = weights[:, width - 1].mean(0)
    places = [c for c in range(width) if visual(row)[c]]
    best = sorted(places, key=lambda c: (-seen[c], c))[: int(ratio * len(places) + 1e-9)]
    return np.array([i for i, c in enumerate(columns) if c not in places or c in best])


@torch.no_grad()
@pytest.mark.parametrize("media", ["image", "video"])
@pytest.mark.parametrize(("ratio", "after"), [(0.5, 2), (0.3, 1), (0.05, 2)])
def test_equals_removing_the_tokens(model, media, ratio, after):
    row = prompt(media, 14, 4)
    with FastV(ratio, after).apply(model) as trace:
        given = record(model, lambda: generate(model, row))

    def survivors(layer, weights, columns):
        if layer != after - 1:
            return np.arange(len(columns))
        return ranked(row, weights, columns, given.prompt, ratio)

    logits, columns = decode(model, given, survivors=survivors)
    expected = reply_logits(logits, columns, given)
    reply = torch.stack(given.output.logits)[:, 0]
    assert (reply - expected).abs().max() <= 1e-4
    # The ratio: K dense layers, then text and the kept visual tokens.
    left = columns[columns < given.prompt]
    assert set(np.flatnonzero(trace.kept[2][0].numpy())) == set(left)
    share = len(left) / given.prompt
    expected_ratio = [1.0 if layer < after else share for layer in range(3)]
    assert trace.layer_ratios[:, 0].tolist() == pytest.approx(expected_ratio)
    assert trace.prompt_kv[:, 0].tolist() == [
        given.prompt if layer < after else len(left) for layer in range(3)
    ]


@torch.no_grad()
def test_positions_stay_those_of_the_whole_prompt(model):
    row = prompt("video", 14, 4)
    dense = record(model, lambda: generate(model, row))
    with apply_method(model, "fastv", 0.2):
        sparse = record(model, lambda: generate(model, row))
    assert np.array_equal(dense.positions, sparse.positions)


def test_text_alone_is_dense(model):
    row = prompt("text", 20, 3)
    dense = generate(model, row)
    with apply_method(model, "fastv", 0.1) as trace:
        same = generate(model, row)
    assert torch.equal(dense.logits[0], same.logits[0])  # the prefill
    assert (torch.stack(dense.logits) - torch.stack(same.logits)).abs().max() <= 1e-5
    assert trace.token_ratio.tolist() == [1.0]


def test_bad_layers_models_and_inputs_are_refused(model):
    for after in (0, 3):
        with pytest.raises(ConfigError, match="after_layer"), FastV(0.5, after).apply(model):
            pass
    with pytest.raises(UnsupportedModelError, match="image or video"), FastV().apply(text_model()):
        pass
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 7, 8]]))
    with FastV().apply(model), pytest.raises(ConfigError, match="input_ids"):
        model(inputs_embeds=embeds)
