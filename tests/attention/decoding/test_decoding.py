"""The decode loop gives the tokens of `generate` for every family, medium and policy."""

from __future__ import annotations

import pytest
import torch
from tiny_models import IMAGE, VIDEO, VISION_END, VISION_START, build, prompt, text_model
from torch import nn

from sf import TopK, TopP, sparsify
from sf.attention import PrunedLayer
from sf.attention.decoding import DecodeLoop, decode, prefill
from sf.errors import ConfigError, EnvironmentFault, UnsupportedModelError

VISUAL = (IMAGE, VIDEO, VISION_START, VISION_END)
COUNT = 9
POLICIES = {
    "full": None,
    "p = 1": TopP(p=1.0),
    "p = 0.6": TopP(p=0.6),
    "a p per row": TopP(p=[0.5, 0.8, 0.95]),
    "top-k": TopK(ratio=0.3),
}


def wanted(model, inputs, policy, **settings):
    """The tokens of transformers' own loop."""
    given = {
        "max_new_tokens": COUNT,
        "do_sample": False,
        "suppress_tokens": list(VISUAL),
        **settings,
    }
    if policy is None:
        return model.generate(**inputs, **given)
    with sparsify(model, policy):
        return model.generate(**inputs, **given)


def made(loop, tokens):
    """Generate tokens; returns all tokens of the answers so far."""
    loop.advance(tokens)
    return loop.step.written[:, : int(loop.step.made.max())].clone()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_tokens_equal_those_of_generate(model, inputs, policy):
    start = prefill(model, inputs, policy, forced=True, suppress_tokens=VISUAL)
    output = decode(start, max_new_tokens=COUNT)
    right = wanted(model, inputs, policy, min_new_tokens=COUNT)
    assert torch.equal(output.sequences, right)
    assert len({tuple(row) for row in right[:, -COUNT:].tolist()}) == 3  # rows that differ
    if policy is None:
        assert output.trace is None
    else:
        assert (output.trace.token_ratio == 1).all() == ("p = 1" in str(policy) or policy.dense)


@pytest.mark.parametrize("media", ["image", "video", "text"])
def test_a_single_prompt(model, media):
    row = prompt(media, 17, 5)
    if media == "text":
        row["mm_token_type_ids"] = torch.zeros_like(row["input_ids"])
    start = prefill(model, row, TopP(p=0.7), forced=True, suppress_tokens=VISUAL)
    right = wanted(model, row, TopP(p=0.7), min_new_tokens=COUNT)
    assert torch.equal(decode(start, max_new_tokens=COUNT).sequences, right)


def test_a_language_model(rows):
    model = text_model()
    row = {key: rows[2][key] for key in ("input_ids", "attention_mask")}
    output = decode(prefill(model, row, TopP(p=0.6)), max_new_tokens=COUNT)
    assert torch.equal(output.sequences, wanted(model, row, TopP(p=0.6)))


def test_rows_end_where_generate_ends_them(model, inputs):
    """Each row's end token is one that it generates by itself, at different steps."""
    free = wanted(model, inputs, TopP(p=0.6), min_new_tokens=COUNT)
    ends = [int(free[0, -6]), int(free[1, -3]), int(free[2, -7])]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = ends
    try:
        right = wanted(model, inputs, TopP(p=0.6))
        output = decode(
            prefill(model, inputs, TopP(p=0.6), suppress_tokens=VISUAL), max_new_tokens=COUNT
        )
    finally:
        model.generation_config.eos_token_id = before
    assert right.shape[1] < free.shape[1]
    assert torch.equal(output.sequences, right)


def test_an_end_in_the_first_token(rows):
    model = text_model()
    row = {key: rows[2][key] for key in ("input_ids", "attention_mask")}
    model.generation_config.eos_token_id = int(
        wanted(model, row, None, min_new_tokens=COUNT)[0, 20]
    )
    right = wanted(model, row, None)
    assert right.shape[1] == 21
    assert torch.equal(decode(prefill(model, row), max_new_tokens=COUNT).sequences, right)


def test_a_repetition_penalty_is_followed(inputs):
    """Qwen2.5-VL's own settings contain one."""
    model = build("qwen2_5_vl", seed=3)
    plain = wanted(model, inputs, TopP(p=0.6), min_new_tokens=COUNT)
    model.generation_config.repetition_penalty = 1.5
    right = wanted(model, inputs, TopP(p=0.6), min_new_tokens=COUNT)
    start = prefill(model, inputs, TopP(p=0.6), forced=True, suppress_tokens=VISUAL)
    assert not torch.equal(plain, right)
    assert torch.equal(decode(start, max_new_tokens=COUNT).sequences, right)


def test_a_restarted_loop_makes_the_same_tokens(model, inputs):
    start = prefill(model, inputs, TopP(p=0.6), forced=True, suppress_tokens=VISUAL)
    loop = start.loop(8)
    first = made(loop, 8)
    loop.restart()
    assert torch.equal(made(loop, 3), first[:, :4])
    assert torch.equal(made(loop, 5), first)


def test_repeated_rows_are_copies(model, inputs):
    start = prefill(model, inputs, TopP(p=0.6), forced=True, suppress_tokens=VISUAL)
    once = decode(start, max_new_tokens=COUNT).sequences[:, -COUNT:]
    start = prefill(model, inputs, TopP(p=0.6), forced=True, suppress_tokens=VISUAL)
    loop = start.loop(COUNT - 1, repeat=2)
    assert torch.equal(made(loop, COUNT - 1), once.repeat_interleave(2, dim=0))
    assert len(loop.step.cache.keys[0]) == 6


def test_the_cache_is_moved_not_copied(model, inputs):
    start = prefill(model, inputs, TopP(p=0.6), forced=True, suppress_tokens=VISUAL)
    layers = start.cache.layers
    assert all(isinstance(layer, PrunedLayer) for layer in layers)
    widths = [layer.keys.shape[2] for layer in layers]
    cache = start.loop(5).step.cache
    assert all(layer.keys is None and not layer.is_initialized for layer in layers)
    for width, key in zip(widths, cache.keys, strict=True):
        assert width + 6 <= key.shape[2] < width + 6 + 8
        assert key.shape[2] % 8 == 0
    assert cache.nbytes == sum(2 * key.numel() * 4 for key in cache.keys)
    with pytest.raises(ConfigError, match="prefill again"):
        start.loop(5)


def test_a_full_buffer_is_not_written_over(model, inputs):
    loop = prefill(model, inputs, TopP(p=0.6), forced=True).loop(3)
    loop.advance(2)
    with pytest.raises(ConfigError, match="room for 3 and hold 2"):
        loop.advance(2)


def test_the_model_is_left_as_it_was(model, inputs):
    before = model.get_decoder().config._attn_implementation
    decode(prefill(model, inputs, TopP(p=0.6), forced=True), max_new_tokens=4)
    assert model.get_decoder().config._attn_implementation == before
    assert not model.get_decoder()._forward_pre_hooks
    plain = wanted(model, inputs, None, min_new_tokens=COUNT)
    assert plain.shape[1] == inputs["input_ids"].shape[1] + COUNT


def test_inside_a_sparse_context(model, inputs):
    """The loop may run while the model is under sparse attention."""
    right = decode(prefill(model, inputs, TopP(p=0.6), forced=True), max_new_tokens=COUNT).sequences
    start = prefill(model, inputs, TopP(p=0.6), forced=True)
    with sparsify(model, TopK(ratio=0.5)):
        assert torch.equal(decode(start, max_new_tokens=COUNT).sequences, right)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 2), ("no_repeat_ngram_size", 3), ("bad_words_ids", [[5]])],
)
def test_settings_that_it_does_not_know_are_refused(name, value, rows):
    model = text_model()
    setattr(model.generation_config, name, value)
    row = {key: rows[2][key] for key in ("input_ids", "attention_mask")}
    with pytest.raises(ConfigError, match=rf"{name} = .*use generate"):
        prefill(model, row)


def test_other_families_are_refused(rows):
    class Other(nn.Module):
        layers = nn.ModuleList([nn.Linear(2, 2)])

        def get_decoder(self):
            return self

    with pytest.raises(UnsupportedModelError, match="Qwen2"):
        prefill(Other(), rows[2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_graph_needs_a_gpu(model, inputs):
    start = prefill(model, inputs, TopP(p=0.6), forced=True)
    with pytest.raises(EnvironmentFault, match="graph"):
        start.loop(4, graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_graph_makes_the_tokens_of_plain_calls(model, inputs, policy, dtype):
    """Recorded and plain steps run the same kernels: equal to the last bit."""
    device = torch.device("cuda")
    moved = build("qwen2_vl" if "Qwen2VL" in type(model).__name__ else "qwen2_5_vl")
    moved = moved.to(device, dtype)
    given = {name: value.to(device) for name, value in inputs.items()}
    by_form = []
    for graph in (False, True):
        start = prefill(moved, given, policy, forced=True, suppress_tokens=VISUAL)
        loop = start.loop(COUNT, graph=graph)
        assert isinstance(loop, DecodeLoop)
        assert loop.recorded == graph
        tokens = made(loop, COUNT)
        loop.restart()
        assert torch.equal(made(loop, COUNT), tokens)
        by_form.append(tokens)
    assert torch.equal(*by_form)
    if dtype == torch.float32:
        right = wanted(moved, given, policy, min_new_tokens=COUNT + 1, max_new_tokens=COUNT + 1)
        assert torch.equal(by_form[1], right[:, -COUNT - 1 :])
