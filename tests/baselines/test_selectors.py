"""top_k, threshold and zipvl as methods against a whole decoder in float64, step by step."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracle import select
from slow_decoder import decode, record, reply_logits
from tiny_models import generate, prompt

from sf.baselines import apply_method

MARGIN = 1e-6  # a choice that rounding could turn would test nothing


def top_k(normalised: np.ndarray, ratio: float) -> np.ndarray:
    """The share of the tokens, rounded up, that scores best."""
    count = math.ceil(Fraction(str(ratio)) * len(normalised))
    order = sorted(range(len(normalised)), key=lambda k: -normalised[k])
    if count < len(order):
        assert normalised[order[count - 1]] - normalised[order[count]] > MARGIN
    return np.isin(np.arange(len(normalised)), order[:count])


def threshold(normalised: np.ndarray, least: float) -> np.ndarray:
    """The tokens whose mean attention weight is at least this."""
    assert np.abs(normalised - least).min() > MARGIN
    return normalised >= least


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "value", "choose"),
    [
        ("top_k", 0.45, top_k),
        ("top_k", 0.07, top_k),
        ("threshold", 0.03, threshold),
        ("threshold", 0.9, threshold),
        ("zipvl", 0.7, None),
    ],
)
@pytest.mark.parametrize(("media", "text"), [("image", 14), ("video", 131)])
def test_equals_the_steps_in_float64(model, media, text, name, value, choose):
    """131 words and a video of 24 tokens exceed the 128 probe queries."""
    row = prompt(media, text, 4)
    with apply_method(model, name, value) as trace:
        given = record(model, lambda: generate(model, row))
    kept = []

    def mask(layer, query, key):
        """Kept prompt tokens and the reply attend to each other; a dropped query to nothing."""
        scores = select(query[:, : given.prompt], key[:, : given.prompt], value)
        kept.append(scores.kept if choose is None else choose(scores.normalised, value))
        kept[-1][-1] = True  # it predicts the first token of the reply
        active = np.concatenate([kept[-1], np.ones(query.shape[1] - given.prompt, dtype=bool)])
        return np.broadcast_to(active[:, None] & active[None], (len(query), *2 * active.shape))

    logits, columns = decode(model, given, mask_of=mask)
    reply = torch.stack(given.output.logits)[:, 0]
    assert (reply - reply_logits(logits, columns, given)).abs().max() <= 2e-4
    for layer, expected in enumerate(kept):
        assert np.array_equal(trace.kept[layer][0].numpy(), expected)
    ratios = [expected.mean() for expected in kept]
    assert trace.layer_ratios[:, 0].tolist() == pytest.approx(ratios)
    assert float(trace.token_ratio[0]) == pytest.approx(np.mean(ratios))
    assert trace.prompt_kv[:, 0].tolist() == [expected.sum() for expected in kept]
    assert 0 < min(ratios) < 1
