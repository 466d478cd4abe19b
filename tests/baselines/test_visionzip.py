"""VisionZip against the paper's steps written out cell by cell, and against removed tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from slow_decoder import Inputs, decode, record, reply_logits, softmax
from tiny_models import IMAGE, VIDEO, batch, generate, text_model
from windowed_tower import GRIDS, UNIT, row

from sf.baselines import apply_method
from sf.baselines.visionzip import VisionZip
from sf.errors import ConfigError, UnsupportedModelError


def inside(model, given):
    """The last block's attention input with its rotary angles, and the merger's input."""
    tower, heard = model.model.visual, {}

    def note(module, args, kwargs):
        heard["hidden"], heard["turn"] = args[0], kwargs["position_embeddings"]

    hooks = [
        tower.blocks[-1].attn.register_forward_pre_hook(note, with_kwargs=True),
        tower.merger.register_forward_pre_hook(lambda m, args: heard.update(merger=args[0])),
    ]
    dense = record(model, lambda: generate(model, given))
    for hook in hooks:
        hook.remove()
    return dense, heard["hidden"], heard["turn"], heard["merger"]


def block_places(model, grid):
    """For each cell (time, row, column), its index in the order of the blocks."""
    t, h, w = grid[0], grid[1] // 2, grid[2] // 2
    cells = [(i, j, k) for i in range(t) for j in range(h) for k in range(w)]
    if hasattr(model.model.visual, "window_size"):
        order = sorted(cells, key=lambda c: (c[0], c[1] // 2, c[2] // 2, c[1], c[2]))
    else:
        order = cells
    return [order.index(cell) for cell in cells]


def scores_and_keys(model, hidden, turn, places, frame_cells):
    """The attention that each cell receives in its time step, and its mean key, in float64."""
    attention = model.model.visual.blocks[-1].attn
    x = hidden.double().numpy()
    weight, bias = (p.detach().double().numpy() for p in attention.qkv.parameters())
    q, k, _ = (
        (x @ weight.T + bias).reshape(len(x), 3, attention.num_heads, -1).transpose(1, 2, 0, 3)
    )
    cos, sin = (part.double().numpy() for part in turn)

    def rotated(part):
        half = part.shape[-1] // 2
        swapped = np.concatenate([-part[..., half:], part[..., :half]], -1)
        return part * cos + swapped * sin

    rq, rk = rotated(q), rotated(k)
    count, score, keys = len(places), np.zeros(len(places)), []
    for cell in range(count):
        units = [places[cell] * UNIT + u for u in range(UNIT)]
        frame = cell // frame_cells
        others = [
            places[c] * UNIT + u
            for c in range(frame * frame_cells, (frame + 1) * frame_cells)
            for u in range(UNIT)
        ]
        for head in range(attention.num_heads):
            logits = rq[head, others] @ rk[head, others].T / math.sqrt(q.shape[-1])
            weights = softmax(logits)
            score[cell] += weights[:, [others.index(m) for m in units]].mean() / len(rq)
        keys.append(k[:, units].mean((0, 1)))
    return score, np.array(keys)


def zipped(score, keys, ratio, share):
    """(dominant, {target: those merged into it}) of one image or time step."""
    cells = len(score)
    left = max(1, int(ratio * cells + 1e-9))
    if left == cells:
        return list(range(cells)), {}
    contextual = int(left * share + 1e-9)
    order = sorted(range(cells), key=lambda c: (-score[c], c))
    dominant, rest = sorted(order[: left - contextual]), sorted(order[left - contextual :])
    if not contextual:
        return dominant, {}
    step = len(rest) // contextual
    targets = [rest[i * step] for i in range(contextual)]
    merged = {target: [] for target in targets}
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    for cell in rest:
        if cell not in targets:
            nearest = max(targets, key=lambda target: (unit[cell] @ unit[target], -target))
            merged[nearest].append(cell)
    return dominant, merged


@torch.no_grad()
@pytest.mark.parametrize("media", ["image", "video"])
@pytest.mark.parametrize(("ratio", "share"), [(0.5, 10 / 64), (0.7, 0.4), (1 / 3, 0.0)])
def test_follows_the_papers_steps(windowed, media, ratio, share):
    given, grid = row(media), GRIDS[media]
    dense, hidden, turn, before = inside(windowed, given)
    places = block_places(windowed, grid)
    frame_cells = grid[1] * grid[2] // UNIT
    score, keys = scores_and_keys(windowed, hidden, turn, places, frame_cells)
    first = given["input_ids"][0].tolist().index(IMAGE if media == "image" else VIDEO)
    embeds, kept = dense.embeds.copy(), np.ones(len(dense.embeds), dtype=bool)
    kept[first : first + len(places)] = False
    cells = before.unflatten(0, (-1, UNIT))[places]
    for frame in range(grid[0]):
        span = slice(frame * frame_cells, (frame + 1) * frame_cells)
        dominant, merged = zipped(score[span], keys[span], ratio, share)
        base = frame * frame_cells
        kept[[first + base + cell for cell in (*dominant, *merged)]] = True
        for target, others in merged.items():
            cell = cells[base + target]
            if others:
                cell = cell + cells[[base + other for other in others]].mean(0)
            embeds[first + base + target] = windowed.model.visual.merger(cell)[0].double().numpy()
    with VisionZip(ratio, share).apply(windowed) as trace:
        sparse = record(windowed, lambda: generate(windowed, given))
    prompt = dense.prompt
    assert all(torch.equal(mask[0], torch.from_numpy(kept[:prompt])) for mask in trace.kept)
    assert trace.token_ratio.item() == pytest.approx(kept[:prompt].mean())
    assert np.array_equal(sparse.positions, dense.positions)
    assert (
        np.abs(sparse.embeds[:prompt][kept[:prompt]] - embeds[:prompt][kept[:prompt]]).max() < 1e-5
    )
    # The language model on the tokens that are left, at their places in the whole prompt.
    keep = np.concatenate([kept[:prompt], np.ones(len(sparse.embeds) - prompt, dtype=bool)])
    embeds = np.concatenate([embeds[:prompt], sparse.embeds[prompt:]])
    left = Inputs(embeds[keep], dense.positions[:, keep], int(kept[:prompt].sum()), None)
    expected = reply_logits(*decode(windowed, left), left)
    assert (torch.stack(sparse.output.logits)[:, 0] - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_images_and_videos_of_a_batch_and_returned_sequences(windowed):
    rows = [row("video", 9, 1), row("image", 14, 2), row("image", 6, 3)]
    with apply_method(windowed, "visionzip", 0.4) as trace:
        together = generate(windowed, batch(rows))
    for i, one in enumerate(rows):
        with apply_method(windowed, "visionzip", 0.4) as own:
            alone = generate(windowed, one)
        gap = torch.stack(together.logits)[:, i] - torch.stack(alone.logits)[:, 0]
        assert gap.abs().max() <= 1e-5
        assert torch.equal(trace.kv_lengths[:, i], own.kv_lengths[:, 0])
    with apply_method(windowed, "visionzip", 0.4) as group:
        several = generate(windowed, rows[2], num_return_sequences=3, num_beams=3)
    assert torch.equal(group.kept[0], own.kept[0].expand(3, -1))
    assert several.sequences.shape[0] == 3


def test_models_and_values_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"Qwen2-VL.*fastv"):
        VisionZip().apply(text_model()).__enter__()
    with pytest.raises(ConfigError, match="contextual"):
        VisionZip(0.5, 1.0)
