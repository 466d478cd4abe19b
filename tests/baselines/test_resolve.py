"""Model + method + value -> attention, from the checkpoint's own record."""

from __future__ import annotations

import json

import pytest
from tiny_models import generate, text_model

from sf.attention.blocks import MobaAttention
from sf.attention.trained import FIELD, TrainedAttention, note_trained, record_of, write_sparsity
from sf.baselines import METHODS, apply_policy, build, resolve, resolve_point
from sf.baselines.moba import MoBA
from sf.baselines.selectors import ThresholdTokens, TopKTokens, ZipVL
from sf.errors import ConfigError, DataError, UnsupportedModelError
from sf.selection import Threshold, TopK, TopP

MOBA = TrainedAttention.of(MobaAttention(top_k=2, block_size=4))
RECORDS = {
    "zipvl": TrainedAttention("zipvl", 0.9),
    "top_k": TrainedAttention("top_k", 0.4),
    "threshold": TrainedAttention("threshold", 0.02),
    "moba": MOBA,
}


def trained(record):
    model = text_model()
    if record is not None:
        note_trained(model, record)
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for every record, as training writes it."""
    folders = {}
    for name, record in RECORDS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        trained(record).save_pretrained(folders[name])
        write_sparsity(folders[name], record, {"objective": "sparsity_forcing"})
    return folders


@pytest.mark.parametrize(
    ("name", "given", "attention"),
    [
        (None, {}, ZipVL(0.975)),
        (None, {"retention_p": 0.9}, ZipVL(0.9)),
        (None, {"method": "top_k"}, TopKTokens(0.25)),
        ("zipvl", {}, ZipVL(0.9)),
        ("zipvl", {"retention_p": 0.8}, ZipVL(0.8)),
        ("zipvl", {"value": 0.7, "retention_p": 0.8}, ZipVL(0.7)),
        ("top_k", {}, TopKTokens(0.4)),
        ("top_k", {"retention_p": 0.8}, TopKTokens(0.4)),
        ("top_k", {"value": 0.3}, TopKTokens(0.3)),
        ("top_k", {"method": "zipvl"}, ZipVL(0.975)),
        ("threshold", {}, ThresholdTokens(0.02)),
        ("moba", {}, MoBA()),
        ("moba", {"method": "full"}, build("full")),
        ("moba", {"method": "moba", "value": 1}, MoBA(1)),
    ],
)
def test_a_checkpoint_runs_under_what_it_records(name, given, attention) -> None:
    assert resolve(trained(RECORDS.get(name)), **given) == attention
    assert METHODS[attention.name].endswith(type(attention).__name__)


@pytest.mark.parametrize("name", RECORDS)
def test_config_and_file_say_the_same(checkpoints, name) -> None:
    folder = checkpoints[name]
    assert record_of(folder) == RECORDS[name]
    config = json.loads((folder / "config.json").read_text())
    assert config[FIELD] == RECORDS[name].note()
    assert json.loads((folder / "sparsity.json").read_text())["objective"] == "sparsity_forcing"


@pytest.mark.parametrize("method", ["zipvl", "top_k", "fastv", "twilight", "nsa"])
def test_a_method_that_contradicts_the_record_is_refused(method) -> None:
    with pytest.raises(UnsupportedModelError, match=method):
        resolve(trained(MOBA), method)


@pytest.mark.parametrize("method", ["moba", "top_k", "fastv", "full"])
def test_only_what_has_a_threshold_or_is_recorded_has_a_curve(method) -> None:
    with pytest.raises(ConfigError, match="no threshold p"):
        resolve_point(trained(RECORDS.get(method)), 0.9, method)


def test_a_point_of_a_curve_is_one_of_the_recorded_method() -> None:
    points = {
        name: resolve_point(trained(record), 0.25)
        for name, record in [*RECORDS.items(), ("", None)]
    }
    assert points == {
        "": ZipVL(0.25),
        "zipvl": ZipVL(0.25),
        "top_k": TopKTokens(0.25),
        "threshold": ThresholdTokens(0.75),
        "moba": MoBA(token_ratio=0.25),
    }


@pytest.mark.parametrize("name", RECORDS)
def test_the_last_point_of_a_curve_is_dense(name, rows) -> None:
    model = trained(RECORDS[name])
    given = {key: rows[2][key] for key in ("input_ids", "attention_mask")}
    dense = generate(model, given).sequences
    for retention_p in (1.0, 0.3):
        with resolve_point(model, retention_p).apply(model) as trace:
            sequences = generate(model, given).sequences
        assert (float(trace.token_ratio) == pytest.approx(1)) == (retention_p == 1)
        assert retention_p < 1 or sequences.equal(dense)


def test_a_policy_of_another_kind_is_refused(rows) -> None:
    given = {key: rows[2][key] for key in ("input_ids", "attention_mask")}
    for record in (MOBA, RECORDS["top_k"]):
        model = trained(record)
        with pytest.raises(UnsupportedModelError, match=r"TopP.*trained with (moba|top_k)"):
            apply_policy(model, TopP(p=0.9))
        with apply_policy(model, TopP(p=1.0)) as trace:
            generate(model, given)
        assert float(trace.token_ratio) == 1
    with apply_policy(model, TopK(ratio=0.5)) as trace:
        generate(model, given)
    half = float(trace.token_ratio)
    with apply_policy(model, None) as trace:
        generate(model, given)
    assert float(trace.token_ratio) < half
    with apply_policy(text_model(), Threshold(value=0.1)) as trace:
        generate(text_model(), given)


@pytest.mark.parametrize(
    ("file", "changes", "text"),
    [
        ("sparsity.json", {"method": "zipvl"}, "contradicts"),
        ("sparsity.json", {"value": 0.5}, "contradicts"),
        ("sparsity.json", {"method": "best"}, r"'best'.*one of"),
        ("sparsity.json", {"value": "much"}, "does not hold the settings of top_k"),
        ("sparsity.json", {"settings": {"size": 4}}, "does not hold the settings of top_k"),
        ("config.json", {FIELD: MOBA.note()}, "contradicts"),
        ("config.json", {FIELD: {"name": "moba", "size": 4}}, "does not hold the settings of moba"),
    ],
)
def test_a_record_that_is_wrong_is_one_error(checkpoints, tmp_path, file, changes, text) -> None:
    for name in ("config.json", "sparsity.json"):
        content = json.loads((checkpoints["top_k"] / name).read_text())
        content |= changes if name == file else {}
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=text):
        record_of(tmp_path)


def test_a_block_attention_that_the_weights_lack_is_refused(checkpoints, tmp_path) -> None:
    config = json.loads((checkpoints["moba"] / "config.json").read_text())
    del config[FIELD]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "sparsity.json").write_text((checkpoints["moba"] / "sparsity.json").read_text())
    with pytest.raises(DataError, match="trained_attention there is nothing"):
        record_of(tmp_path)
