"""EVS and VidCom2 against their papers' steps written out token by token, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from slow_decoder import Inputs, decode, record, reply_logits
from tiny_models import VIDEO, batch, generate, text_model
from windowed_tower import GRIDS, UNIT, row

from sf.baselines import apply_method, build
from sf.errors import UnsupportedModelError


def evs(video, ratio):
    """The kept (time step, token) pairs: the whole first time step, then what changed most."""
    steps, tokens = video.shape[:2]
    changed = {}
    for t in range(1, steps):
        for s in range(tokens):
            one, before = video[t, s], video[t - 1, s]
            cosine = one @ before / math.sqrt((one @ one) * (before @ before))
            changed[t, s] = 1 - cosine
    ranked = sorted(changed, key=lambda place: -changed[place])
    more = max(0, int(ratio * steps * tokens + 1e-9) - tokens)
    return {(0, s) for s in range(tokens)} | set(ranked[:more])


def similarity(one, centre):
    squared = sum((a - b) ** 2 for a, b in zip(one, centre, strict=True))
    return sum(math.exp(-squared / (2 * 2.0**k)) for k in (-3, -2, -1, 0, 1))


def vidcom2(video, ratio):
    steps, tokens, channels = video.shape
    spread = video.reshape(-1, channels).var(0)
    steady = sorted(range(channels), key=lambda c: spread[c])[: channels // 2]
    unit = video[..., steady]
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    whole = unit.mean((0, 1))
    in_video = [[similarity(unit[t, s], whole) for s in range(tokens)] for t in range(steps)]
    weight = [math.exp(-np.mean(line) / 0.01 + 100) for line in in_video]
    share = [w / sum(weight) for w in weight]
    kept = set()
    for t in range(steps):
        count = max(1, round(min(1.0, ratio * (1 + share[t] - 1 / steps)) * tokens))
        centre = unit[t].mean(0)
        score = [in_video[t][s] + similarity(unit[t, s], centre) for s in range(tokens)]
        kept |= {(t, s) for s in sorted(range(tokens), key=lambda s: score[s])[:count]}
    return kept


ORACLES = {"evs": evs, "vidcom2": vidcom2}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.4, 0.9])
def test_keeps_what_the_written_out_steps_keep(name, ratio):
    for seed, (steps, tokens) in enumerate([(2, 5), (4, 12), (7, 9)]):
        generator = torch.Generator().manual_seed(seed)
        video = torch.randn(steps, tokens, 16, generator=generator)
        video[steps // 2] *= 0.2  # a time step apart from the others
        video[1] = video[0] + 0.1 * video[1]
        left = build(name, ratio).left(video)
        kept = {(t, s) for t, s in left.nonzero().tolist()}
        assert kept == ORACLES[name](video.double().numpy(), ratio)


def test_an_unusual_time_step_keeps_more_tokens():
    generator = torch.Generator().manual_seed(0)
    video = torch.ones(4, 40, 8) + 0.05 * torch.randn(4, 40, 8, generator=generator)
    video[2] *= -1
    counts = build("vidcom2", 0.25).left(video).sum(1)
    assert counts.argmax() == 2
    assert counts[2] > 1.5 * counts[[0, 1, 3]].max()


def test_a_still_video_keeps_its_first_time_step():
    video = torch.randn(1, 6, 8).expand(5, 6, 8).clone()
    left = build("evs", 0.1).left(video)
    assert left[0].all()
    assert not left[1:].any()
    video[3, 2] *= -1
    assert build("evs", 7 / 30).left(video)[1:].nonzero().tolist() == [[2, 2]]


@torch.no_grad()
@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("ratio", [0.4, 0.7])
def test_equals_removing_the_tokens(windowed, name, ratio):
    given = row("video")
    dense = record(windowed, lambda: generate(windowed, given))
    first = given["input_ids"][0].tolist().index(VIDEO)
    steps, tokens = GRIDS["video"][0], GRIDS["video"][1] * GRIDS["video"][2] // UNIT
    span = slice(first, first + steps * tokens)
    kept = np.ones(dense.prompt, dtype=bool)
    kept[span] = False
    video = dense.embeds[span].reshape(steps, tokens, -1)
    kept[[first + t * tokens + s for t, s in ORACLES[name](video, ratio)]] = True
    with apply_method(windowed, name, ratio) as trace:
        sparse = record(windowed, lambda: generate(windowed, given))
    assert all(torch.equal(mask[0], torch.from_numpy(kept)) for mask in trace.kept)
    assert trace.token_ratio.item() == pytest.approx(kept.mean())
    assert trace.prompt_kv[:, 0].tolist() == [kept.sum()] * 3
    assert np.array_equal(sparse.positions, dense.positions)
    # The language model on the tokens that are left, at their places in the whole prompt.
    replies = np.ones(len(sparse.embeds) - dense.prompt, dtype=bool)
    keep = np.concatenate([kept, replies])
    embeds = np.concatenate([dense.embeds[: dense.prompt], sparse.embeds[dense.prompt :]])
    left = Inputs(embeds[keep], dense.positions[:, keep], int(kept.sum()), None)
    expected = reply_logits(*decode(windowed, left), left)
    assert (torch.stack(sparse.output.logits)[:, 0] - expected).abs().max() <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ORACLES)
def test_images_stay_whole_beside_videos(windowed, name):
    rows = [row("image", 9, 1), row("video", 14, 2), row("video", 6, 3)]
    with apply_method(windowed, name, 0.4) as trace:
        together = generate(windowed, batch(rows))
    assert trace.token_ratio[0] == 1
    assert trace.token_ratio[1:].max() < 1
    for i, one in enumerate(rows):
        with apply_method(windowed, name, 0.4) as own:
            alone = generate(windowed, one)
        gap = torch.stack(together.logits)[:, i] - torch.stack(alone.logits)[:, 0]
        assert gap.abs().max() <= 1e-5
        assert torch.equal(trace.kv_lengths[:, i], own.kv_lengths[:, 0])


@pytest.mark.parametrize("name", ORACLES)
def test_other_towers_are_refused(name):
    with pytest.raises(UnsupportedModelError, match=r"Qwen2-VL.*fastv"):
        build(name).apply(text_model()).__enter__()
