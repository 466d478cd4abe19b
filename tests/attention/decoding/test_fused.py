"""The fused layers against the modules, in Triton's interpreter or on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from launches import launched
from peft import LoraConfig, get_peft_model
from tiny_models import batch, build, prompt
from transformers import Qwen2Config, Qwen2ForCausalLM

from sf import TopP
from sf.attention.backends import cuda, using_backend
from sf.attention.backends.cuda import CudaBackend
from sf.attention.decoding import fused, prefill

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VISUAL = (90, 91, 92, 93)


def text_model():
    torch.manual_seed(3)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=96, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, initializer_range=0.15,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def started(family, rows, fuses):
    """A loop after the same prefill, with or without fused layers."""
    model = (text_model() if family == "qwen2" else build(family)).to(DEVICE)
    kinds = ["text"] * 3 if family == "qwen2" else ["image", "video", "text"]
    prompts = [prompt(kind, 9 + 5 * at, at + 1) for at, kind in enumerate(kinds)][:rows]
    inputs = {name: part.to(DEVICE) for name, part in batch(prompts).items()}
    if family == "qwen2":
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    start = prefill(model, inputs, TopP(p=0.6), forced=True, suppress_tokens=VISUAL)
    with using_backend(CudaBackend(fuses=fuses)):
        return start.loop(6, graph=False)


def logits_of(loop, fuses):
    """The logits of three steps, float32 (3, rows, V)."""
    made = []
    choose = loop.step._choose
    loop.step._choose = lambda logits: made.append(logits.clone()) or choose(logits)
    with using_backend(CudaBackend(fuses=fuses)):
        loop.advance(3)
    return torch.stack(made)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl", "qwen2_5_vl"])
def test_logits_equal_the_modules_on_the_device(family, rows):
    test_logits_and_cache_equal_the_modules(family, rows)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl", "qwen2_5_vl"])
def test_logits_and_cache_equal_the_modules(family, rows):
    modules, ours = (started(family, rows, fuses) for fuses in (False, True))
    assert modules.step._fused is None
    assert ours.step._fused is not None
    wanted, got = logits_of(modules, False), logits_of(ours, True)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.step.written, modules.step.written)
    for held, right in zip(ours.cache.keys, modules.cache.keys, strict=True):
        torch.testing.assert_close(held, right, rtol=1e-4, atol=1e-4)
    for held, right in zip(ours.cache.values, modules.cache.values, strict=True):
        torch.testing.assert_close(held, right, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="counts through the interpreter")
@pytest.mark.parametrize(("rows", "kernels", "operators"), [(1, 7, 0), (3, 6, 7)])
def test_launches_of_a_layer(rows, kernels, operators, monkeypatch):
    """One row: projections, rotation, attention's two, output, gate with up, down. Several rows:
    two norms, rotation, attention's two and the gate, with seven of the vendor's products."""
    monkeypatch.setattr(cuda, "_LEAST_ENTRIES", 0)
    layers = [launches_of(depth, rows) for depth in (1, 3)]
    one, three = layers
    assert len(three.kernels) - len(one.kernels) == 2 * kernels
    assert len(three.names) - len(one.names) == 2 * operators


def launches_of(depth, rows):
    """What a step launches with this many layers."""
    loop = started("qwen2_5_vl", rows, True)
    step = loop.step
    step.decoder.layers = step.decoder.layers[:depth]
    step.cache.masks = step.cache.masks[:depth]
    with using_backend(CudaBackend()), torch.inference_mode(), launched() as counted:
        step._logits()
    return counted


def test_autocast_runs_the_modules():
    """Under autocast, modules multiply in another dtype than that of their weights."""
    layers = started("qwen2_5_vl", 1, True).step._fused
    assert layers.usable
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert not layers.usable


def hooked(model):
    model.get_decoder().layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    return model


def replaced(model):
    """As some libraries patch a module, on the instance."""
    norm = model.get_decoder().layers[0].input_layernorm
    norm.forward = norm.forward
    return model


def adapted(model):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"])).get_base_model()


def activated(model):
    model.get_decoder().layers[0].mlp.act_fn = torch.nn.GELU()
    return model


def mixed(model):
    model.get_decoder().layers[2].mlp.half()
    return model


def exact_norm(model):
    """Norms are often kept in float32."""
    model.half().get_decoder().layers[2].input_layernorm.float()
    return model


def other_norm(model):
    norm = torch.nn.RMSNorm(48)
    norm.variance_epsilon = 1e-6
    model.get_decoder().layers[1].post_attention_layernorm = norm
    return model


@pytest.mark.parametrize(
    "change",
    [
        *(hooked, replaced, adapted, activated, mixed, exact_norm, other_norm),
        lambda model: model.double(),
    ],
)
def test_other_modules_run_themselves(change):
    model = change(build("qwen2_5_vl"))
    with using_backend(CudaBackend()):
        assert fused.FusedLayers.of(model.get_decoder(), model.get_output_embeddings()) is None
        plain = build("qwen2_5_vl")
        assert fused.FusedLayers.of(plain.get_decoder(), plain.get_output_embeddings()) is not None


def test_rotary_components_that_are_not_yet_combined():
    """transformers 5.17 hands (3, A, 1, D) to its layers."""
    decoder = build("qwen2_5_vl").get_decoder()
    size = 8
    apart = torch.arange(3 * 2 * size, dtype=torch.float32).view(3, 2, 1, size)
    # mrope_section [1, 1, 2]: time, height, width, width, for both halves.
    got = fused._per_row(apart, decoder)
    wanted = [[0, 17, 34, 35, 4, 21, 38, 39], [8, 25, 42, 43, 12, 29, 46, 47]]
    assert got.tolist() == wanted
