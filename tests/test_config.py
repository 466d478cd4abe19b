"""Parameters: errors state field, value, rule and remedy; rows; differences."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf.config import Params, load_params
from sf.data.budget import longest_prompt
from sf.errors import ConfigError
from sf.scales import render_scale, scale_values
from sf.validation import field_differences, merged, validated

ROOT = Path(__file__).parent.parent


def with_change(tmp_path: Path, old: str, new: str) -> Path:
    text = render_scale("mini", ROOT / "params")
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "  retention_p: 0.975",
            "  retention_p: 1.5",
            ("evaluate.retention_p", "1.5", "less than"),
        ),
        ("beta:", "betta:", ("grpo.betta", "not a known parameter", "did you mean beta")),
        (
            "profile:\n  models:",
            "profile:\n  subjects:",
            ("profile.subjects", "not a known parameter", "its name is now profile.models"),
        ),
        ("seed: 0", "seed: none", ("seed", "'none'", "integer")),
        (
            "  methods: [full, zipvl]",
            "  methods: [full, zip]",
            ("axes.methods", "'zip'", "did you mean zipvl"),
        ),
        ("suites: [all]", "suites: [alle]", ("benchmarks.suites", "'alle'", "did you mean all")),
        ("suites: [all]", "suites: [mme, image]", ("mme is in 'mme' and in 'image'", "once")),
        ("scale: mini", "scale: my study", ("scale", "'my study'", "a name must consist of")),
        ("  tiny-qwen2.5-vl:", "  tiny qwén:", ("base", "'tiny qwén'", "a name must consist of")),
        ("correctness_cutoff: 0.99", "correctness_cutoff: 0", ("greater than 0",)),
        (
            "sparsity_forcing: {objective: sparsity_forcing}",
            "sparsity_forcing: {objective: sparsity_forcin}",
            ("objectives.sparsity_forcing.objective", "did you mean sparsity_forcing"),
        ),
        (
            "sparsity_forcing: {objective: sparsity_forcing}",
            "sf: {objective: sparsity_forcing, rollout_selektor: top_k}",
            ("objectives.sf: ", "rollout_selektor", "did you mean rollout_selector"),
        ),
        (
            "sparsity_forcing: {objective: sparsity_forcing}",
            "sf: {objective: moba, train: {betta: 1}}",
            ("objectives.sf: train.betta", "not a known parameter"),
        ),
        (
            "sparsity_forcing: {objective: sparsity_forcing}",
            "zipvl: {objective: sparsity_forcing}",
            ("objectives = 'zipvl'", "row without training", "another name"),
        ),
        (
            "curve_methods: []",
            "curve_methods: [fastv]",
            ("axes.curve_methods", "'fastv'", "no threshold p", "use zipvl or twilight"),
        ),
        (
            "  methods: [full, zipvl]",
            "  methods: [full, nsa]",
            (
                "axes.methods = 'nsa'. tiny-qwen2.5-vl",
                "nsa needs weights that this model lacks",
                "objective nsa",
            ),
        ),
        ("scale: mini", "scale: [mini", ("not valid YAML", "params.yaml")),
        (
            "    source: scratch",
            "    source: /models/tiny",
            ("scratch", "is not used: no base model has source 'scratch'", "remove the section"),
        ),
        (
            "source: synthetic",
            "source: /data",
            ("prepare", "source '/data' does not use synthetic_rows"),
        ),
    ],
)
def test_an_error_names_field_value_rule_and_remedy(
    tmp_path: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_params(with_change(tmp_path, old, new))
    for part in parts:
        assert part in str(caught.value)


def test_a_method_that_cannot_run_on_a_model_is_refused_before_any_job() -> None:
    values = scale_values("mini", ROOT / "params")
    (spec,) = values["base"].values()
    values["axes"]["methods"] = ["full", "visionzip"]
    validated(Params, values)
    spec |= {"family": "llava_onevision", "source": "hub:OWNER/NAME@main"}
    with pytest.raises(ConfigError, match=r"scratch\. is not used: no base model has source"):
        validated(Params, values)
    del values["scratch"]
    with pytest.raises(ConfigError, match=r"visionzip runs on qwen2_vl and qwen2_5_vl only, not"):
        validated(Params, values)
    spec["without"] = ["visionzip"]
    params = validated(Params, values)
    assert [row for row in ("full", "visionzip") if params.has_row(*params.base, row)] == ["full"]
    values["axes"]["methods"] = ["full", "zipvl"]
    with pytest.raises(ConfigError, match=r"without = .*visionzip is not one of axes\.methods"):
        validated(Params, values)
    del spec["without"]
    values["axes"]["methods"] = ["full", "nsa"]  # the hub's checkpoint may be one trained with NSA
    validated(Params, values)


def test_a_missing_file_and_a_list_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sf use mini"):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_params(tmp_path / "list.yaml")


def test_every_offending_field_is_listed() -> None:
    values = scale_values("mini", ROOT / "params")
    del values["seed"], values["scale"]
    values["train"] |= {"learning_rate": -1, "learning_rte": 1}
    with pytest.raises(ConfigError) as caught:
        validated(Params, values)
    lines = str(caught.value).splitlines()
    assert [line.split()[0].rstrip(".") for line in lines] == [
        "train.learning_rte", "scale", "seed", "train.learning_rate"
    ]  # fmt: skip


def test_rows_of_one_objective_may_differ_in_their_settings() -> None:
    values = scale_values("mini", ROOT / "params")
    values["objectives"] = {
        "plain": {"objective": "sparsity_forcing"},
        "top_k": {"objective": "sparsity_forcing", "rollout_selector": "top_k"},
        "v1": {"objective": "sparsity_forcing", "retention_p": {"low": 0.0, "high": 1.0}},
        "slow": {"objective": "pathwise", "train": {"steps": 9, "lora": {"rank": 2, "alpha": 4}}},
        "target": {
            "objective": "pathwise",
            "pathwise": {"target": {"token_ratio": 0.25, "dual_rate": 20.0}},
        },
    }
    rows = validated(Params, values).trained
    plain, top_k = rows["plain"].objective, rows["top_k"].objective
    assert plain.rollout_selector == "top_p"
    assert top_k == plain.model_copy(update={"rollout_selector": "top_k"})
    assert rows["v1"].objective.retention_p.high == 1.0  # type: ignore[union-attr]
    assert rows["slow"].train.steps == 9
    assert rows["slow"].train.lora is not None
    assert rows["plain"].train.steps == values["train"]["steps"]
    assert rows["plain"].train.lora is None
    target = rows["target"].objective.pathwise  # type: ignore[union-attr]
    assert (target.weight, target.target.token_ratio) == (1.0, 0.25)


def test_settings_of_training_and_rows_may_differ_by_base_model() -> None:
    values = scale_values("mini", ROOT / "params")
    (spec,) = values["base"].values()
    values["base"] = {"a": dict(spec), "b": {**spec, "train": {"steps": 7, "log_every": 3}}}
    values["objectives"] = {
        "all": {"objective": "sparsity_forcing"},
        "own": {"objective": "zipvl_sft", "train": {"steps": 9}, "models": ["b"]},
    }
    params = validated(Params, values)
    assert params.trained_of("a", "all") == params.trained["all"]
    assert params.trained_of("a", "all").train.steps == values["train"]["steps"]
    settings = {row: params.trained_of("b", row).train for row in ("all", "own")}
    assert [(train.steps, train.log_every) for train in settings.values()] == [(7, 3), (9, 3)]
    rest = settings["all"].model_dump(exclude={"steps", "log_every"})
    assert rest == params.train.model_dump(exclude={"steps", "log_every"})
    rows = [(model, row) for model in "ab" for row in values["objectives"]]
    assert [pair for pair in rows if not params.has_row(*pair)] == [("a", "own")]
    for models, said in ((["c"], "'c'. is not one of the base models. known: a, b"), ([], "list")):
        values["objectives"]["own"]["models"] = models
        with pytest.raises(ConfigError, match=rf"objectives\.own\.models = .*{said}"):
            validated(Params, values)
    del values["objectives"]["own"]
    values["base"]["b"]["train"] = {"stepps": 7}
    with pytest.raises(ConfigError, match=r"base\.b\.train\.stepps.* did you mean steps"):
        validated(Params, values)


PUBLISHED = {
    "moba": {"token_ratio": None, "top_k": 3, "block": 512},
    "nsa": {
        **{"token_ratio": None, "top_n": 16, "compress_block": 32, "compress_stride": 16},
        **{"select_block": 64, "window": 512},
    },
    "videonsa": {"token_ratio": None, "top_n": 32, "block": 64, "window": 256},
}


@pytest.mark.parametrize("scale", ["paper", "single_gpu"])
@pytest.mark.parametrize("objective", PUBLISHED)
def test_attention_over_blocks_keeps_a_quarter_and_is_refused_where_it_is_dense(
    scale: str, objective: str
) -> None:
    """The methods' own sizes are for much longer prompts."""
    values = scale_values(scale, ROOT / "params")
    values["objectives"] = {"row": {"objective": objective}}
    params = validated(Params, values)
    settings = params.trained["row"].objective
    for vision in (params.vision, params.evaluation_vision):
        assert settings.expected_ratio(longest_prompt(vision)) == pytest.approx(0.25, abs=0.05)
    values["objectives"]["row"] |= PUBLISHED[objective]
    with pytest.raises(ConfigError, match=r"objectives.row = .*keeps 1\.\d\d of a prompt of 1,088"):
        validated(Params, values)


def test_attention_over_blocks_has_a_ratio_or_a_number() -> None:
    for given, rule in (({"top_k": 3}, "both are set"), ({"token_ratio": None}, "none is set")):
        values = scale_values("mini", ROOT / "params")
        values["objectives"] = {"row": {"objective": "moba", **given}}
        with pytest.raises(ConfigError, match=rule):
            validated(Params, values)


def test_settings_are_merged_as_rfc_7396_has_it() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": [1, 2]}
    assert merged(old, {"a": {"b": None, "e": {"f": 3}}, "d": [3]}) == {
        "a": {"c": 2, "e": {"f": 3}},
        "d": [3],
    }
    assert old == {"a": {"b": 1, "c": 2}, "d": [1, 2]}


def test_differences_are_listed_by_leaf() -> None:
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert field_differences(old, new) == [("a.b", 1, 3), ("a.c", 2, None), ("d", None, 4)]
