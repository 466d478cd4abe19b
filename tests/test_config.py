"""Parameters: labels, scales, errors that say field, value, rule and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sf import config
from sf.config import Params, field_differences, load_params, read_yaml, validated
from sf.errors import ConfigError

ROOT = Path(__file__).parent.parent
SCALES = sorted((ROOT / "params").glob("*.yaml"))


def with_change(tmp_path: Path, old: str, new: str) -> Path:
    text = (ROOT / "params" / "mini.yaml").read_text()
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_a_named_scale_is_valid_and_names_itself(path: Path) -> None:
    assert load_params(path).scale == path.stem


def test_the_scales_of_the_documentation_exist() -> None:
    assert {path.stem for path in SCALES} == {"smoke", "mini", "compare", "single_gpu", "paper"}


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_every_value_says_where_it_comes_from(path: Path) -> None:
    for line in path.read_text().splitlines():
        is_leaf = re.match(r"\s*[\w.\-]+: *[^#\s]", line)
        if is_leaf:
            assert re.search(r"# (published|assumed|ours)\b", line), line


def test_the_default_parameters_are_the_mini_scale() -> None:
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "params" / "mini.yaml").read_bytes()


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_all_scales_have_the_same_sections_and_fields(path: Path) -> None:
    mini, other = read_yaml(ROOT / "params" / "mini.yaml"), read_yaml(path)
    for name, section in mini.items():
        if isinstance(section, dict) and name not in ("base", "resources"):
            assert list(section) == list(other[name]), name


def test_field_names_are_unique_over_the_sections_of_a_command_line() -> None:
    seen: dict[str, str] = {}
    for name, field in Params.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, config.Section) and name != "axes":
            for key in section.model_fields:
                assert key not in seen, f"{key} in {name} and {seen.get(key)}"
                seen[key] = name


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("inference_p: 0.975", "inference_p: 1.5", ("evaluate.inference_p", "1.5", "less than")),
        ("beta:", "betta:", ("train.betta", "not a known parameter", "did you mean beta")),
        ("seed: 0", "seed: none", ("seed", "'none'", "integer")),
        (
            "  methods: [full, zipvl]",
            "  methods: [full, zip]",
            ("axes.methods", "'zip'", "did you mean zipvl"),
        ),
        ("suites: [all]", "suites: [alle]", ("benchmarks.suites", "'alle'", "did you mean all")),
        ("suites: [all]", "suites: [mme, image]", ("mme is in 'mme' and in 'image'", "once")),
        ("models: [tiny-qwen2.5-vl]", "models: [other]", ("name each model in both", "other")),
        (
            "curve_methods: []",
            "curve_methods: [fastv]",
            ("axes.curve_methods", "'fastv'", "no threshold p", "use zipvl or twilight"),
        ),
        (
            "  methods: [full, zipvl]",
            "  methods: [full, nsa]",
            ("axes.methods with tiny-qwen2.5-vl", "nsa has weights of its own", "objective nsa"),
        ),
        ("scale: mini", "scale: [mini", ("not valid YAML", "params.yaml")),
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
    values = read_yaml(ROOT / "params" / "mini.yaml")
    (spec,) = values["base"].values()
    values["axes"]["methods"] = ["full", "visionzip"]
    validated(Params, values)
    spec |= {"family": "llava_onevision", "source": "hub:OWNER/NAME@main"}
    with pytest.raises(ConfigError, match="not trained; give them a study with objectives:"):
        validated(Params, values)
    values["axes"]["objectives"] = []
    with pytest.raises(ConfigError, match=r"visionzip runs on qwen2_vl and qwen2_5_vl only, not"):
        validated(Params, values)
    values["axes"]["methods"] = ["full", "nsa"]  # the hub's checkpoint may be one trained with NSA
    validated(Params, values)


def test_a_missing_file_and_a_list_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sf use mini"):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_params(tmp_path / "list.yaml")


def test_several_errors_are_counted() -> None:
    values = YAML(typ="safe").load((ROOT / "params" / "mini.yaml").read_text())
    del values["seed"], values["scale"]
    with pytest.raises(ConfigError, match="1 more errors"):
        validated(Params, values)


def test_differences_are_listed_by_leaf() -> None:
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert field_differences(old, new) == [("a.b", 1, 3), ("a.c", 2, None), ("d", None, 4)]
