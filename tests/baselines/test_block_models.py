"""MoBA and NSA in whole models."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, batch, build, text_model
from torch import nn
from with_weights import check_left_padding, equipped

from sf.attention.blocks import MobaAttention, NsaAttention, Replacement
from sf.attention.trained import note_trained
from sf.baselines import apply_method
from sf.errors import ConfigError, DataError, SparsityForcingError
from sf.models import load_model
from sf.training.block_config import MobaSettings, NsaSettings

MOBA = MobaAttention(top_k=2, block_size=4)
NATIVE = NsaAttention(top_n=3, compress_block=4, compress_stride=2, select_block=4, window=6)


@pytest.fixture(scope="module")
def equipped_models():
    return {family: equipped(build(family), NATIVE) for family in FAMILIES} | {
        "qwen2": equipped(text_model(), NATIVE)
    }


@pytest.fixture(params=["moba", "nsa"])
def method(request):
    return {"moba": MOBA, "nsa": NATIVE}[request.param]


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_is_the_row_alone(equipped_models, family, method, rows):
    check_left_padding(equipped_models[family], method, rows, 44)


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2"])
def test_step_by_step_is_teacher_forced(equipped_models, family, method, rows):
    model = equipped_models[family]
    given = rows[2] if family == "qwen2" else rows[0]
    if family == "qwen2":
        given = {name: given[name] for name in ("input_ids", "attention_mask")}
    width = given["input_ids"].shape[1]
    with Replacement(model, method) as trace:
        steps = model.generate(
            **given, max_new_tokens=8, min_new_tokens=8, do_sample=False,
            suppress_tokens=[90, 91, 92, 93], return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        stepped = trace.layer_ratios
    whole = given | {"input_ids": steps.sequences[:, :-1]}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in given:
        whole["mm_token_type_ids"] = nn.functional.pad(given["mm_token_type_ids"], (0, 7))
    with Replacement(model, method, width) as trace:
        logits = model(**whole).logits[0, width - 1 :]
    assert (logits - torch.stack(steps.logits)[:, 0]).abs().max() < 1e-4
    assert torch.allclose(stepped, trace.layer_ratios)
    assert trace.kv_lengths[0].tolist() == [width + 7]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_are_dense_attention(equipped_models, family, rows):
    model, given = equipped_models[family], batch(rows)
    dense = model(**given).logits
    valid = given["attention_mask"].bool()
    with Replacement(model, MobaAttention(99, 4)) as trace:
        assert (model(**given).logits - dense)[valid].abs().max() < 1e-4
    assert torch.allclose(trace.token_ratio, torch.ones(3))
    gates = [layer.self_attn.nsa.gate for layer in model.get_decoder().layers]
    before = [gate.state_dict() for gate in gates]
    before = [{k: v.clone() for k, v in state.items()} for state in before]
    for gate in gates:
        nn.init.zeros_(gate.weight)
        # Only the selected branch passes.
        gate.bias.data = torch.tensor([-1e4, 1e4, -1e4]).repeat_interleave(gate.out_features // 3)
    with Replacement(model, NsaAttention(99, 4, 2, 4, 6)) as trace:
        assert (model(**given).logits - dense)[valid].abs().max() < 1e-4
    assert (trace.token_ratio > 1).all()  # the compressed entries come on top
    for gate, state in zip(gates, before, strict=True):
        gate.load_state_dict(state)


def test_fewer_blocks_read_fewer_tokens(equipped_models, rows):
    ratios = []
    for top_k in (1, 2, 4, 99):
        with Replacement(equipped_models["qwen2_5_vl"], MobaAttention(top_k, 4)) as trace:
            equipped_models["qwen2_5_vl"](**rows[1])
        ratios.append(float(trace.token_ratio))
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.5
    assert ratios[-1] == pytest.approx(1)


NSA_RATIO = NsaSettings(
    token_ratio=0.4, compress_block=16, compress_stride=8, select_block=8, window=9
)


@pytest.mark.parametrize("length", [100, 257])
@pytest.mark.parametrize(
    ("settings", "most_below", "floor"),
    [
        (MobaSettings(token_ratio=0.25, block=2), 0.0, 0.25),
        (MobaSettings(token_ratio=1.0, block=8), 0.0, 1.0),
        (MobaSettings(top_k=3, block=8), 0.0, None),
        (NSA_RATIO, 0.05, None),  # a selected block can be in the window
    ],
)
def test_the_expected_token_ratio_is_the_measured_one(settings, most_below, floor, length):
    attention = settings.attention()
    model = equipped(build("qwen2_5_vl"), attention)
    with Replacement(model, attention) as trace:
        model(input_ids=torch.arange(length)[None] % 50 + 10)
    measured, expected = float(trace.token_ratio.mean()), settings.expected_ratio(length)
    assert expected - most_below - 1e-6 <= measured <= expected + 1e-6
    if floor is not None:
        assert measured == pytest.approx(floor, abs=0.04)


def test_gradient_checkpointing_changes_nothing(method, rows):
    model, outcomes = equipped(build("qwen2_5_vl"), NATIVE).train(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        with Replacement(model, method):
            loss = model(**rows[0], labels=rows[0]["input_ids"], use_cache=False).loss
            loss.backward()
        outcomes.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*outcomes, strict=True))
    trained = [n for n, p in model.named_parameters() if ".nsa." in n and p.grad is not None]
    assert bool(trained) == isinstance(method, NsaAttention)


def test_the_model_is_given_back(equipped_models, method, rows):
    model = equipped_models["qwen2_vl"]
    before = model(**rows[0]).logits
    with Replacement(model, method):
        assert not torch.equal(model(**rows[0]).logits, before)
        with pytest.raises(ConfigError, match="already under"):
            Replacement(model, method).open()
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[10**6]]))
    assert torch.equal(model(**rows[0]).logits, before)


def test_what_cannot_run_says_what_to_do(equipped_models):
    plain = build("qwen2_vl")
    for way in (lambda: Replacement(plain, NATIVE), lambda: apply_method(plain, "nsa")):
        with pytest.raises(SparsityForcingError, match="objective nsa"):
            way()
    with pytest.raises(ConfigError, match="multiple of compress_stride"):
        NsaAttention(3, 4, 3, 4, 6)
    with pytest.raises(ConfigError, match="trained with 4"):
        Replacement(equipped_models["qwen2_vl"], NsaAttention(3, 8, 2, 4, 6))
    with pytest.raises(ConfigError, match="whole number"):
        apply_method(plain, "moba", 2.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_with_its_attention(family, method, rows, tmp_path):
    model = build(family)
    if isinstance(method, NsaAttention):
        model = equipped(model, NATIVE)
    else:
        note_trained(model, method)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    name = "nsa" if isinstance(method, NsaAttention) else "moba"
    with Replacement(model, method):
        expected = model(**rows[0]).logits
    with apply_method(loaded, name) as trace:
        assert torch.equal(loaded(**rows[0]).logits, expected)
        usual = float(trace.token_ratio)
    with apply_method(loaded, name, 4) as trace:
        assert not torch.equal(loaded(**rows[0]).logits, expected)
        assert float(trace.token_ratio) > usual
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert load_model(again).state_dict().keys() == model.state_dict().keys()
    text = (again / "config.json").read_text()
    (again / "config.json").write_text(text.replace(f'"name": "{name}"', '"name": "mobius"'))
    with pytest.raises(DataError, match="mobius"):
        load_model(again)
