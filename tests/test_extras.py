"""The core works alone; a missing extra is named where it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sf
from sf import cli
from sf.errors import EnvironmentFault, MissingExtra
from sf.extras import MODULES, extra, extra_of

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DASHES = str.maketrans("._", "--")
INSTALLED = packages_distributions()
OPTIONAL = {module for modules in MODULES.values() for module in modules} | {"triton"}


def names(requirements: list[str]) -> set[str]:
    """Distributions of a list of requirements, in PyPI's normal form."""
    return {re.split(r"[^\w.-]", line)[0].lower().translate(DASHES) for line in requirements}


def providers(module: str) -> set[str]:
    return {name.lower().translate(DASHES) for name in INSTALLED.get(module, [])}


def imports() -> Iterator[tuple[Path, str, bool]]:
    """(file, top-level module, whether the import runs unguarded when the file is imported)."""
    for path in sorted((ROOT / "sf").rglob("*.py")):
        for node in ast.walk(tree := ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            for module in modules:
                root = module.partition(".")[0]
                if root not in sys.stdlib_module_names and root not in ("sf", "workflow"):
                    yield path, root, node in tree.body


IMPORTS = list(imports())


def test_each_import_is_in_the_core_or_in_a_named_extra():
    core = names(PROJECT["dependencies"])
    for path, module, _ in IMPORTS:
        assert module in OPTIONAL or providers(module) & core, (path, module)


def test_no_extra_is_imported_unguarded_beside_the_core():
    kernels = ROOT / "sf" / "attention" / "kernels"  # imported where triton is installed only
    for path, module, unguarded in IMPORTS:
        if not path.is_relative_to(kernels):
            assert not (unguarded and module in OPTIONAL), (path, module)


@pytest.mark.parametrize("name", ["train", "eval", "serve", "pipeline"])
def test_an_extra_lists_what_its_modules_come_from(name: str):
    for module in MODULES[name]:
        assert providers(module) & names(EXTRAS[name]), module


def test_every_dependency_has_a_constraint_and_no_line_names_a_host():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines}
    wanted = names(PROJECT["dependencies"])
    for name in ("train", "eval", "serve", "pipeline", "dev"):
        wanted |= names(EXTRAS[name])
    assert wanted - {"sparsity-forcing"} <= pinned
    assert not any("//" in line or "@" in line for line in lines)


def test_make_env_installs_everything():
    assert re.search(r"^EXTRAS \?= dev$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert "sparsity-forcing[all]" in EXTRAS["dev"]
    assert EXTRAS["all"] == ["sparsity-forcing[train,eval,serve,pipeline]"]


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Python without the extras' modules, in the checkout."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)!r}))\n"
    command = [sys.executable, "-c", absent + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_import_loads_nothing_heavy():
    code = "import sf, sys; print(sorted({'torch', 'numpy', 'pydantic', 'typer'} & {*sys.modules}))"
    assert run(code).stdout == "[]\n"


def test_the_core_alone_loads_a_model_and_answers(tmp_path: Path):
    done = run(
        f"""
import numpy as np
from PIL import Image
from sf.models import build_tiny
for part in build_tiny("qwen2_5_vl", ["what color is the circle"] * 3, 0):
    part.save_pretrained({str(tmp_path / "model")!r})
Image.fromarray(np.zeros((56, 56, 3), np.uint8)).save({str(tmp_path / "image.png")!r})
sys.argv = ["sf", "ask", "--model", {str(tmp_path / "model")!r}, "--question", "what color",
    "--image", {str(tmp_path / "image.png")!r}, "--picture", {str(tmp_path / "kept.png")!r},
    "--max-new-tokens", "3", "--device", "cpu"]
from sf.cli import main
main()
"""
    )
    assert done.returncode == 0, done.stderr
    assert "token ratio" in done.stdout
    assert "Loading weights" not in done.stderr
    assert "Warning" not in done.stderr
    assert (tmp_path / "kept.png").is_file()


def test_a_missing_extra_is_named_with_its_command():
    done = run(
        """
from importlib import import_module
from sf.errors import MissingExtra
from sf.mlflow_store import best_effort

def tracked():
    with best_effort("a result"):
        raise AssertionError("MLflow is there")

cases = {name: lambda name=name: import_module(name) for name in (
    "sf.training.trainer", "sf.training.sft", "sf.training.settings", "sf.evaluation.model")}
for name, case in {**cases, "tracked": tracked}.items():
    try:
        case()
    except MissingExtra as error:
        print(error.remedy)
"""
    )
    named = ["train", "train", "train", "eval", "pipeline"]
    lines = done.stdout.splitlines()
    assert len(lines) == len(named), done.stderr
    for name, line in zip(named, lines, strict=True):
        assert f"pip install 'sparsity-forcing[{name}]'" in line


@pytest.mark.parametrize(("module", "name"), [("trl.models", "train"), ("mlflow", "pipeline")])
def test_the_command_line_names_it_in_one_line(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def app() -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("sf.cli.entry.app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"pip install 'sparsity-forcing[{name}]'" in line


def test_the_version_is_printed():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert result.output == f"sf {sf.__version__}\n"
    assert version("sparsity-forcing") == sf.__version__


def test_a_module_of_no_extra_keeps_its_own_error():
    with pytest.raises(ModuleNotFoundError) as caught, extra("train"):
        import absent_module_of_nobody  # noqa: F401
    assert not isinstance(caught.value, MissingExtra)
    assert extra_of("absent_module_of_nobody") is None
    assert extra_of("trl.models") == "train"
    assert issubclass(MissingExtra, EnvironmentFault)
