"""The methods on LLaVA models: dense if they keep everything, rows independent, or refused."""

from __future__ import annotations

import pytest
import torch
from llava_models import next_video, onevision, padded, row
from tiny_models import IMAGE, VIDEO, generate

from sf.baselines import METHODS, apply_method, method_class
from sf.errors import UnsupportedModelError

VALUES = {
    "zipvl": 0.6,
    "random": 0.3,
    "top_k": 0.4,
    "threshold": 0.05,
    "fastv": 0.3,
    "minference": 0.3,
    "twilight": 0.3,
    "temperature": 0.3,
    "moba": 1.0,
}


@pytest.fixture(scope="module", params=[onevision, next_video], ids=["onevision", "next_video"])
def llava(request):
    return request.param()


def logits(output):
    return torch.stack(output.logits)


@torch.no_grad()
@pytest.mark.parametrize("name", VALUES)
def test_dense_where_everything_is_kept_and_rows_on_their_own(llava, name):
    rows = [row(llava, "image", 9, 1), row(llava, "video", 14, 2)]
    both, hyperparameter = padded(rows), method_class(name).hyperparameter
    if hyperparameter.dense is not None:
        dense = generate(llava, both)
        with apply_method(llava, name, hyperparameter.dense):
            assert torch.equal(logits(dense), logits(generate(llava, both)))
    with apply_method(llava, name, VALUES[name]) as trace:
        together = generate(llava, both)
    assert trace.token_ratio.max() < 1
    for i, one in enumerate(rows):
        with apply_method(llava, name, VALUES[name]) as own:
            alone = generate(llava, one)
        assert (logits(together)[:, i] - logits(alone)[:, 0]).abs().max() <= 5e-5
        assert torch.allclose(trace.layer_ratios[:, i], own.layer_ratios[:, 0], atol=2e-3)


@torch.no_grad()
def test_fastv_drops_visual_tokens_only(llava):
    given = row(llava, "image", 9, 1)
    with apply_method(llava, "fastv", 0.3) as trace:
        generate(llava, given, 2)
    visual = torch.isin(given["input_ids"], torch.tensor([IMAGE, VIDEO]))
    assert trace.kept[0].all()
    assert trace.kept[2][~visual].all()
    assert trace.kept[2][visual].sum() == int(0.3 * int(visual.sum()))


def test_visionzip_is_refused(llava):
    with (
        pytest.raises(UnsupportedModelError, match=r"qwen2_vl and qwen2_5_vl only"),
        apply_method(llava, "visionzip"),
    ):
        pass
    assert llava.get_decoder().config._attn_implementation == "sdpa"
    assert set(METHODS) - set(VALUES) == {"full", "visionzip", "evs", "vidcom2", "nsa", "videonsa"}
