"""Every method: names, hyperparameters, identity with dense, undo, independent rows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny_models import generate

from sf import TopP, sparsify
from sf.baselines import METHODS, apply_method, build, method_class
from sf.baselines.registry import (
    FAMILIES,
    OWN_WEIGHTS,
    WITH_RETENTION_P,
    misfit,
    without_retention_p,
)
from sf.errors import ConfigError
from sf.result_key.imports import stage_code

ROOT = Path(__file__).parent.parent.parent
DENSE = [
    name
    for name in METHODS
    if (hyperparameter := method_class(name).hyperparameter) is None or hyperparameter.dense
]
WITH_HYPERPARAMETER = [name for name in METHODS if method_class(name).hyperparameter is not None]


def state(model):
    """Everything that a method could have changed."""
    states = [
        (
            name,
            [len(module._forward_hooks), len(module._forward_pre_hooks)],
            sorted(vars(module)),
            getattr(module, "scaling", None),
        )
        for name, module in model.named_modules()
    ]
    decoder = model.get_decoder()
    return states, decoder.config._attn_implementation, model.config._attn_implementation


def run_and_fail(model, inputs):
    generate(model, inputs, 1)
    raise ZeroDivisionError


def logits(output):
    return torch.stack(output.logits)


def test_names_are_known_without_torch() -> None:
    code = "import sys, sf.baselines; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str) -> None:
    method = method_class(name)
    assert method.name == name
    assert method.text
    assert method.paper
    assert method.counts
    assert method.__doc__
    if method.hyperparameter is not None:
        given = {field.name: field.default for field in fields(method)}
        assert given[method.hyperparameter.name] == method.hyperparameter.default
        assert (
            method.hyperparameter.check(method.hyperparameter.default)
            == method.hyperparameter.default
        )
    documented = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert f"| {name} |" in documented


def test_the_code_of_every_method_counts_for_a_result() -> None:
    code = stage_code("evaluate").modules
    for line in METHODS.values():
        assert f"{line.partition(':')[0].replace('.', '/')}.py" in code
    # A further method must not make a training stale.
    assert not [name for name in stage_code("train").modules if "baselines" in name]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("zipvll", 0.9, "method = 'zipvll'.*did you mean zipvl"),
        ("9", None, "known: full, zipvl"),
        ("full", 0.5, "has no hyperparameter"),
        ("zipvl", 0.0, r"p = 0.0.*\(0, 1\].*use 0.975"),
        ("zipvl", float("nan"), r"p = nan.*\(0, 1\]"),
        ("zipvl", "much", r"p = 'much'.*\(0, 1\]"),
        ("threshold", -0.1, r"threshold = -0.1.*\[0, 1\]"),
    ],
)
def test_bad_names_and_values_are_refused(name, value, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, value)


def test_what_is_known_without_the_classes_is_true_of_them() -> None:
    fields = {name: method_class(name).__dataclass_fields__ for name in METHODS}
    assert {name for name in METHODS if "retention_p" in fields[name]} == {*WITH_RETENTION_P}
    assert {*FAMILIES, *OWN_WEIGHTS} <= set(METHODS)
    assert [name for name in METHODS if without_retention_p(name) is None] == [*WITH_RETENTION_P]


@pytest.mark.parametrize(
    ("name", "family", "trained_with", "words"),
    [
        ("visionzip", "qwen2_vl", None, None),
        ("visionzip", "llava_next_video", None, "qwen2_vl and qwen2_5_vl only, not on llava"),
        ("evs", "llava_onevision", None, "qwen2_vl and qwen2_5_vl only, not on llava"),
        ("vidcom2", "qwen2_5_vl", None, None),
        ("nsa", "qwen2_vl", "nsa", None),
        ("nsa", "qwen2_vl", "moba", "train it: objective nsa"),
        ("nsa", "qwen2_vl", None, "weights that this model lacks"),
        ("videonsa", "qwen2_5_vl", "videonsa", None),
        ("videonsa", "qwen2_5_vl", "nsa", "train it: objective videonsa"),
        ("zipvl", "qwen2_5_vl", "videonsa", "use trained, videonsa or full"),
        ("fastv", "llava_next_video", None, None),
        ("moba", "llava_onevision", None, None),
    ],
)
def test_a_method_says_on_which_models_it_runs(name, family, trained_with, words) -> None:
    reason = misfit(name, family, trained_with)
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize("name", WITH_HYPERPARAMETER)
def test_values_out_of_range_are_refused(name: str) -> None:
    hyperparameter = method_class(name).hyperparameter
    assert hyperparameter is not None
    bad = [
        hyperparameter.high * 2,
        hyperparameter.low - 1,
        *([] if hyperparameter.low_allowed else [hyperparameter.low]),
    ]
    for value in bad:
        with pytest.raises(ConfigError, match=hyperparameter.name):
            build(name, value)


@pytest.mark.parametrize("name", DENSE)
def test_keeping_everything_is_dense_bit_for_bit(model, rows, inputs, name: str) -> None:
    hyperparameter = method_class(name).hyperparameter
    for given in (*rows, inputs):
        dense = generate(model, given)
        with apply_method(
            model, name, None if hyperparameter is None else hyperparameter.dense
        ) as trace:
            same = generate(model, given)
        assert torch.equal(dense.sequences, same.sequences)
        assert torch.equal(logits(dense), logits(same))
        lengths = given["attention_mask"].sum(-1)
        assert trace.token_ratio.tolist() == [1.0] * len(lengths)
        assert trace.layer_ratios.shape == (3, len(lengths))
        assert torch.equal(trace.prompt_kv, lengths.expand(3, -1))
        assert torch.equal(trace.kv_lengths, lengths.expand(3, -1) + 5)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_nothing_behind(model, inputs, name: str) -> None:
    before, dense = state(model), logits(generate(model, inputs))
    with apply_method(model, name):
        assert state(model) != before
        generate(model, inputs, 2)
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), apply_method(model, name):
        run_and_fail(model, inputs)
    assert state(model) == before
    assert torch.equal(logits(generate(model, inputs)), dense)


TOLERANCE = 5e-5  # a temperature of 0.1 makes rounding in a logit ten times as large
LOW = {
    "zipvl": 0.6,
    "top_k": 0.4,
    "threshold": 0.05,
    "temperature": 0.1,
    "fastv": 0.3,
    "random": 0.3,
    "visionzip": 0.3,
    "evs": 0.3,
    "vidcom2": 0.3,
    "minference": 0.3,
    "twilight": 0.3,
    "moba": 1.0,
    "nsa": 3.0,
    "videonsa": 1.0,
}


@pytest.mark.parametrize("name", METHODS)
def test_rows_do_not_feel_each_other(model, rows, inputs, name: str) -> None:
    with apply_method(model, name, LOW.get(name)) as trace:
        together = generate(model, inputs)
    for i, row in enumerate(rows):
        with apply_method(model, name, LOW.get(name)) as own:
            alone = generate(model, row)
        assert torch.equal(together.sequences[i, -6:], alone.sequences[0, -6:])
        assert (logits(together)[:, i] - logits(alone)[:, 0]).abs().max() <= TOLERANCE
        assert torch.allclose(trace.layer_ratios[:, i], own.layer_ratios[:, 0])
        assert torch.equal(trace.kv_lengths[:, i], own.kv_lengths[:, 0])


@pytest.mark.parametrize("name", [name for name in WITH_HYPERPARAMETER if name in LOW])
def test_the_hyperparameter_moves_the_ratio_its_way(model, inputs, name: str) -> None:
    hyperparameter = method_class(name).hyperparameter
    ratios = []
    for value in (
        LOW[name],
        LOW[name] + 0.75 * ((hyperparameter.high if hyperparameter.rises else 0) - LOW[name]),
    ):
        with apply_method(model, name, round(value) if hyperparameter.whole else value) as trace:
            generate(model, inputs, 3)
        ratios.append(trace.token_ratio)
    assert ratios[0].mean() < ratios[1].mean()


def test_a_temperature_of_one_is_zipvl(model, inputs) -> None:
    with sparsify(model, TopP(p=0.975)) as zipvl:
        expected = generate(model, inputs)
    with apply_method(model, "temperature", 1.0) as trace:
        output = generate(model, inputs)
    assert torch.equal(logits(output), logits(expected))
    assert torch.equal(trace.layer_ratios, zipvl.layer_ratios)
    with apply_method(model, "temperature", 0.3) as trace:
        sharper = generate(model, inputs)
    assert not torch.equal(logits(sharper), logits(expected))
    assert trace.token_ratio.mean() < zipvl.token_ratio.mean()


def test_temperature_is_a_model_with_sharper_queries(model, inputs) -> None:
    """Dividing the logits by T equals multiplying the query projection by 1/T."""
    import copy

    sharp = copy.deepcopy(model)
    for layer in sharp.get_decoder().layers:
        for part in (layer.self_attn.q_proj.weight, layer.self_attn.q_proj.bias):
            part.data.mul_(2)
    with sparsify(sharp, TopP(p=0.975)) as expected_trace:
        expected = generate(sharp, inputs)
    with apply_method(model, "temperature", 0.5) as trace:
        output = generate(model, inputs)
    assert (logits(output) - logits(expected)).abs().max() <= 1e-5
    assert torch.equal(trace.layer_ratios, expected_trace.layer_ratios)
