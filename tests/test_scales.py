"""Named scales: differences from the defaults, each value once, and the complete file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from sf.cli import app
from sf.config import load_params
from sf.errors import ConfigError
from sf.fields import flat
from sf.scales import load_scale, render_scale, scale_names, scale_values, use_scale
from sf.validation import read_yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "params"
SCALES = scale_names(FOLDER)


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the scales and the parameters of `mini`."""
    shutil.copytree(FOLDER, tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    use_scale("mini")
    return tmp_path


def test_the_scales_of_the_documentation_exist() -> None:
    assert set(SCALES) == {"smoke", "mini", "compare", "tables", "single_gpu", "paper"}


def test_the_default_parameters_are_the_mini_scale() -> None:
    assert (ROOT / "params.yaml").read_text() == render_scale("mini", FOLDER)


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_is_rendered_whole_with_the_source_of_every_value(name: str) -> None:
    text = render_scale(name, FOLDER)
    assert parsed(text) == scale_values(name, FOLDER)
    assert load_scale(name, FOLDER).scale == name
    for line in text.splitlines():
        is_leaf = re.match(r"\s*[\w.\-]+: *[^#\s]", line)
        if is_leaf:
            assert re.search(r"# (published|assumed|ours)\b", line), line
    defaults = (FOLDER / "defaults.yaml").read_text().splitlines()
    assert text.startswith("\n".join(defaults[:6]))
    assert "unused" not in text


def leaves(values: dict[str, Any]) -> dict[str, Any]:
    """The values by dotted name; rows and resources, one line each, count as one value."""
    lines = {
        f"{section}.{name}": value
        for section in ("objectives", "resources")
        for name, value in (values.get(section) or {}).items()
    }
    rest = {key: value for key, value in values.items() if key not in ("objectives", "resources")}
    return {**flat(rest), **lines}


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_names_only_what_it_changes(name: str) -> None:
    changes = read_yaml(FOLDER / f"{name}.yaml")
    parent = changes.pop("extends", None)
    before = scale_values(parent, FOLDER) if parent else read_yaml(FOLDER / "defaults.yaml")
    known = leaves(before)
    for key, value in leaves(changes).items():
        if value is None:  # removes a leaf or a section
            assert key in known or any(other.startswith(f"{key}.") for other in known), key
        else:
            assert known.get(key) != value, f"{key} has this value without the scale"


def test_all_scales_have_the_same_sections_and_fields() -> None:
    paper = scale_values("paper", FOLDER)
    own = {"base", "objectives", "resources", "scratch"}
    for name in SCALES:
        other = scale_values(name, FOLDER)
        assert set(other) - own == set(paper) - own
        for section in set(paper) - own:
            if isinstance(paper[section], dict):
                optional = {"collapse", "synthetic_rows"}
                assert set(paper[section]) - optional == set(other[section]) - optional, section


def write_scale(folder: Path, name: str, text: str) -> None:
    (folder / "params" / f"{name}.yaml").write_text(text)


def test_keys_are_changed_added_after_their_neighbour_and_removed(checkout: Path) -> None:
    text = (
        "# Ours.\nextends: mini\nscale: own   # ours\n\ntrain:\n  steps: 7   # ours: few\n"
        "  lora:   # small\n    rank: 2   # ours\n    alpha: 4   # ours\n  collapse: null\n"
    )
    write_scale(checkout, "own", text)
    lines = render_scale("own").splitlines()
    place = lines.index("  steps: 7   # ours: few")
    added = ["  lora:   # small", "    rank: 2   # ours", "    alpha: 4   # ours"]
    assert lines[place + 1 : place + 4] == added
    values, mini = parsed("\n".join(lines)), scale_values("mini")
    assert "collapse" not in values["train"]
    del mini["train"]["collapse"]
    mini["train"] |= {"steps": 7, "lora": {"rank": 2, "alpha": 4}}
    assert values == {**mini, "scale": "own"}
    sections = [line for line in lines if re.match(r"\w", line)]
    rendered = render_scale("mini").splitlines()
    assert len(sections) == len([line for line in rendered if re.match(r"\w", line)])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("extends: minni\nscale: own\n", ("extends", "'minni'", "has no file in params/", "mini")),
        ("extends: own\nscale: own\n", ("own.yaml: extends", "extends itself")),
        ("extends: mini\nscale: own\naxes:\n  seeds:\n    - 0\n", ("line 5", "put lists in br")),
        (
            "extends: mini\nscale: own\nresources:\n  default: {cpus: 2}\n",
            ("own.yaml", "changes part of a value", "write the complete value"),
        ),
        ("extends: mini\nscale: own\ntrain:\n  stepps: 3\n", ("train.stepps", "did you mean")),
        ("extends: mini\nscale: [own\n", ("not valid YAML",)),
    ],
)
def test_a_faulty_scale_is_refused_with_the_place(
    checkout: Path, text: str, parts: tuple[str, ...]
) -> None:
    write_scale(checkout, "own", text)
    before = (checkout / "params.yaml").read_text()
    with pytest.raises(ConfigError) as caught:
        use_scale("own")
    for part in parts:
        assert part in str(caught.value)
    assert (checkout / "params.yaml").read_text() == before


def test_use_prints_what_changes(checkout: Path) -> None:
    result = CliRunner().invoke(app, ["use", "smoke"])
    assert result.exit_code == 0, result.output
    assert (checkout / "params.yaml").read_text() == render_scale("smoke")
    words = [line.split() for line in result.output.splitlines()]
    assert ["│", "train.steps", "│", "250", "│", "3", "│"] in words
    assert "params.yaml is now the scale 'smoke'" in result.output
    assert use_scale("smoke") == []
    with pytest.raises(ConfigError, match=r"'smok'. has no file in params/.*smoke"):
        use_scale("smok")


def test_an_edited_file_is_kept_and_its_edits_are_named(checkout: Path) -> None:
    path = checkout / "params.yaml"
    edited = path.read_text().replace("steps: 250 ", "steps: 300 ")
    path.write_text(edited)
    with pytest.raises(ConfigError) as caught:
        use_scale("smoke")
    assert "edited since `sf use mini`: train.steps: 250 → 300" in str(caught.value)
    assert path.read_text() == edited
    # The remedy works: the file, kept as a scale, is that scale.
    path.write_text(edited.replace("scale: mini", "scale: kept"))
    shutil.copy(path, checkout / "params" / "kept.yaml")
    assert use_scale("smoke")
    use_scale("kept")
    assert load_params(path).train.steps == 300
    path.write_text(edited)
    assert ("train.steps", 300, 3) in use_scale("smoke", force=True)
