"""transformers' own tests of generation and modelling pass under `sparsify`.

They come from a checkout of transformers at the installed version, which `TRANSFORMERS_TESTS` names
(its wheel has no tests); without it only the plugin that applies `sparsify` is tested.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers

HERE = Path(__file__).parent
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
MODES = {
    "plain": {},
    "p = 1": {"SPARSIFY_P": "1"},
    "p = 1, every layer": {"SPARSIFY_P": "1", "SPARSIFY_EVERY_LAYER": "1"},
    "p = 0.9": {"SPARSIFY_P": "0.9"},
}
REFUSED = re.compile(
    r"sf\.errors\.(UnsupportedModelError: attention mask|ConfigError: (cache_implementation"
    r"|past_key_values|attention_mask|output_attentions)) = "
)
"""What a selection, or the sparse attention function, refuses before work."""
CACHE_SHAPE = re.compile(r"AssertionError: torch\.Size\(\[(.*)\]\) != \((.*)\)")
"""An assertion on a cache's (batch, heads, length, head size)."""


def is_pruned(error: str) -> bool:
    """Whether a test failed because a cache has fewer entries than the prompt has tokens."""
    found = CACHE_SHAPE.match(error)
    if found is None:
        return False
    (*there, length, size), (*full, width, same) = (
        [int(number) for number in shape.split(",")] for shape in found.groups()
    )
    return there == full and size == same and length < width


def run(files: list[Path], root: Path, results: Path, mode: str) -> Any:
    """The results of `under_sparsify` for a suite."""
    paths = [root, HERE, HERE.parents[1], os.environ.get("PYTHONPATH", "")]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SPARSIFY_")},
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "SPARSIFY_RESULTS": str(results),
        "HF_HUB_OFFLINE": "1",
        **MODES[mode],
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "under_sparsify", "-p", "no:logging"]
    command += ["-p", "no:cacheprovider", "-W", "ignore", "--timeout", "600", *map(str, files)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(results.read_text())


# The plugin

SUITE = """
import torch
from tiny_models import build, generate, prompt, text_model

inputs = prompt("image", 30, 1)
torch.manual_seed(0)
ids = torch.randint(3, 20, (1, 40))


class TestModel:
    has_attentions = True

    def test_a_cache_has_all_tokens(self):
        cache = build("qwen2_vl")(**inputs).past_key_values
        assert cache.layers[0].keys.shape[2] == inputs["input_ids"].shape[1], "pruned"

    def test_positional_ids_are_the_prompt(self):
        asked = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
        output = text_model().generate(ids, **asked)
        assert output.past_key_values.layers[0].keys.shape[2] == 43, "pruned"

    def test_a_part_alone(self):
        model = build("qwen2_5_vl")
        model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])

    def test_attentions(self):
        model = text_model()
        model.set_attn_implementation("eager")
        output = model(ids, output_attentions=self.has_attentions)
        assert not self.has_attentions or output.attentions is not None

    def test_a_static_cache(self):
        text_model().generate(ids, max_new_tokens=4, cache_implementation="static")

    def test_every_model_of_a_test(self):
        lengths = [text_model(seed)(ids).past_key_values.layers[0].keys.shape[2] for seed in (0, 1)]
        assert lengths == [40, 40], "pruned"

    def test_a_test_within_a_test(self, subtests):
        with subtests.test("pruned"):
            assert text_model()(ids).past_key_values.layers[0].keys.shape[2] == 40, "pruned"
        with subtests.test("passes"):
            pass
"""
PRUNED = {
    "test_a_cache_has_all_tokens",
    "test_positional_ids_are_the_prompt",
    "test_every_model_of_a_test",
    "test_a_test_within_a_test",
}


@pytest.mark.parametrize("mode", ["p = 1, every layer", "p = 0.9"])
def test_the_plugin_applies_sparsify_to_every_model_of_a_test(mode: str, tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    found = run([tmp_path / "test_suite.py"], tmp_path, tmp_path / "results.json", mode)
    failed = {
        name.split("::")[-1]: error
        for name, (outcome, error) in found["tests"].items()
        if outcome == "failed"
    }
    assert len(found["tests"]) == SUITE.count("def test_")
    assert {"Qwen2VLForConditionalGeneration", "Qwen2ForCausalLM"} <= {*found["models"]["sparse"]}
    assert found["models"]["no decoder"] == ["Qwen2_5_VisionTransformerPretrainedModel"]
    assert REFUSED.match(failed.pop("test_a_static_cache"))
    assert set(failed) == (PRUNED if mode == "p = 0.9" else set())
    assert all("pruned" in error for error in failed.values())


# transformers' suites


@pytest.fixture(scope="session")
def checkout() -> Path:
    given = os.environ.get("TRANSFORMERS_TESTS")
    if not given:
        pytest.skip("TRANSFORMERS_TESTS names no checkout of transformers (CONTRIBUTING.md)")
    root = Path(given).absolute()
    text = (root / "src/transformers/__init__.py").read_text()
    version = re.search(r'__version__ = "(.*)"', text)
    assert version, f"{root} is no checkout of transformers"
    assert version[1] == transformers.__version__, "check out the installed version"
    assert find_spec("parameterized"), "its tests need: pip install parameterized"
    return root


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session")
def plain(checkout: Path, family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tests that pass without `sparsify`."""
    return outcome_of(family, "plain", checkout, tmp_path_factory.mktemp("plain"))


def outcome_of(family: str, mode: str, root: Path, folder: Path) -> Any:
    files = [root / f"tests/models/{family}/test_modeling_{family}.py"]
    return run(files, root, folder / "results.json", mode)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "plain"])
def test_what_passes_plain_passes(
    mode: str, family: str, checkout: Path, plain: Any, tmp_path: Path
) -> None:
    found = outcome_of(family, mode, checkout, tmp_path)
    passing = [name for name, (outcome, _) in plain["tests"].items() if outcome == "passed"]
    assert len(passing) > 80
    assert len(found["models"]["sparse"]) >= 2
    assert all("Vision" in name for name in found["models"]["no decoder"])
    new = {}
    for name in passing:
        outcome, error = found["tests"].get(name, ["missing", ""])
        refused = mode != "p = 1" and REFUSED.match(error)
        lacks = mode == "p = 0.9" and (is_pruned(error) or outcome == "skipped")
        if not (outcome == "passed" or refused or lacks):
            new[name] = outcome, error
    assert not new


@pytest.mark.parametrize(
    ("error", "pruned"),
    [
        ("AssertionError: torch.Size([3, 2, 24, 8]) != (3, 2, 39, 8)", True),
        ("AssertionError: torch.Size([3, 2, 40, 8]) != (3, 2, 39, 8)", False),
        ("AssertionError: torch.Size([1, 2, 24, 8]) != (3, 2, 39, 8)", False),
        ("AssertionError: Tensor-likes are not close!", False),
    ],
)
def test_only_a_shorter_cache_is_a_pruned_one(error: str, pruned: bool) -> None:
    assert is_pruned(error) == pruned
