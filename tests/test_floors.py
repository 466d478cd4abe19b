"""Imports lead downwards: the floors of docs/architecture.md, and no cycle among modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def floors_of(text: str) -> dict[str, int]:
    """Name -> floor, counted from the top, from the table below the heading."""
    rows = re.findall(r"^\| (`.*`) \|", text.partition("\n## Floors\n")[2], flags=re.M)
    names = [re.findall(r"`([\w.]+)`", row) for row in rows]
    assert len({name for row in names for name in row}) == sum(map(len, names))
    return {name: floor for floor, row in enumerate(names) for name in row}


FLOORS = floors_of((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "sf").rglob("*.py")
}


def imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports: at the top, for types or in functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else node.module


def floor_of(module: str) -> int:
    """The floor of the longest matching name; the package itself is at the bottom."""
    name = module.removeprefix("sf").removeprefix(".")
    while name and name not in FLOORS:
        name = name.rpartition(".")[0]
    assert name or module == "sf", f"{module} is on no floor of docs/architecture.md"
    return FLOORS[name] if name else max(FLOORS.values())


def test_every_import_leads_downwards() -> None:
    upwards = [
        f"{module} imports {name}, which is above it"
        for module, path in MODULES.items()
        for name in imported(path, MODULES)
        if floor_of(name) < floor_of(module)
    ]
    assert upwards == []


def test_no_modules_import_each_other() -> None:
    graph = {module: {*imported(path, MODULES)} - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_every_floor_holds_something() -> None:
    names = {module.removeprefix("sf.") for module in MODULES}
    assert [name for name in FLOORS if name not in names] == []


def test_a_circle_through_a_late_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from sf.b import x\n")
    (tmp_path / "b.py").write_text("def late():\n    import sf.a\n")
    modules = {f"sf.{name}": tmp_path / f"{name}.py" for name in "ab"}
    with pytest.raises(CycleError):
        TopologicalSorter({m: set(imported(p, modules)) for m, p in modules.items()}).prepare()
