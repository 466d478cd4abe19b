"""LLaVA-OneVision, and LLaVA-Video through the same class, with a Qwen2 language model."""

from __future__ import annotations

import pytest
import torch
from llava_models import next_video, onevision, padded, row
from oracle import MaskForm
from tiny_models import generate
from transformers import AttentionInterface, AttentionMaskInterface

from sf import FixedMask, TopP, sparsify


@pytest.fixture(scope="module", params=[onevision, next_video], ids=["onevision", "next_video"])
def llava(request):
    return request.param()


@torch.no_grad()
def test_full_retention_is_dense_and_rows_do_not_feel_each_other(llava):
    rows = [row(llava, "image", 9, 1), row(llava, "video", 14, 2)]
    both = padded(rows)
    dense = generate(llava, both)
    with sparsify(llava, TopP(p=1.0)):
        same = generate(llava, both)
    assert torch.equal(torch.stack(dense.logits), torch.stack(same.logits))
    with sparsify(llava, TopP(p=[0.5, 0.8])) as trace:
        sparse = generate(llava, both)
    assert trace.token_ratio.max() < 1
    for i, p in enumerate([0.5, 0.8]):
        with sparsify(llava, TopP(p=p)) as own:
            alone = generate(llava, rows[i])
        gap = torch.stack(sparse.logits)[:, i] - torch.stack(alone.logits)[:, 0]
        assert gap.abs().max() <= 1e-5
        assert torch.equal(trace.kv_lengths[:, i], own.kv_lengths[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("media", ["image", "video"])
def test_teacher_forced_equals_incremental_and_the_mask_form(llava, media):
    given = row(llava, media, 14, 2)
    with sparsify(llava, TopP(p=0.7)) as trace:
        output = generate(llava, given)
    kept, width = trace.kept, given["input_ids"].shape[1]
    full = dict(given, input_ids=output.sequences)
    full["attention_mask"] = torch.ones_like(output.sequences)
    with sparsify(llava, FixedMask(kept), prompt_width=width):
        forced = llava(**full, use_cache=False).logits[0, width - 1 : -1]
    assert (forced - torch.stack(output.logits)[:, 0]).abs().max() <= 1e-5

    form = MaskForm([0.7], width)
    AttentionInterface.register("mask_form", form.attention)
    AttentionMaskInterface.register("mask_form", form.mask)
    decoder = llava.get_decoder()
    decoder.set_attn_implementation("mask_form")
    try:
        expected = llava(**full, use_cache=False).logits[0, width - 1 : -1]
    finally:
        decoder.set_attn_implementation("sdpa")
    assert all(torch.equal(kept[i], form.kept[i]) for i in range(3))
    assert (forced - expected).abs().max() <= 1e-5
