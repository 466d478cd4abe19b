"""The code of a stage: the modules of this package that it imports, directly or indirectly.

Imports inside functions count like those at the top of a module, and so do modules named in
strings, as in a registry ("sf.baselines.full:Full"). Data files of the package count by content,
in the module that names them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sf
from sf.atomic_files import replacing
from sf.result_key.packages import counted_versions
from sf.result_key.syntax import counted_nodes, syntax_digest

__all__ = ["RUNNER", "Code", "code_of", "module_file", "stage_code"]

PACKAGE = Path(sf.__file__).parent
RUNNER: dict[str, str] = {
    "sf.attempts": "records",
    "sf.atomic_files": "writes the bytes that it is given",
    "sf.config": "reads and checks parameters, whose values count",
    "sf.errors": "an error ends a stage",
    "sf.evaluation.registry": "names our model to lmms-eval's command line",
    "sf.extras": "an error ends a stage",
    "sf.fields": "checks parameters, whose values count",
    "sf.interruption": "stops a stage",
    "sf.jobs": "starts a stage",
    "sf.mlflow_runs": "records",
    "sf.mlflow_store": "records",
    "sf.mlflow_study": "records",
    "sf.offline": "keeps a stage off the hub",
    "sf.progress": "prints",
    "sf.provenance": "records",
    "sf.ranks": "starts processes and carries their messages",
    "sf.redaction": "hides secrets from records",
    "sf.result_key": "decides whether a stage runs",
    "sf.reuse": "decides whether a stage runs",
    "sf.tracking": "records",
}
"""Excluded modules, with modules imported only by them: they run a stage but do not affect it."""
LOOKS: dict[str, str] = {"sf.plotting": "appearance of figures, not numbers"}
"""Excluded too, except for the report, which is cheap and meant to be looked at."""
_REGISTRY_LINE = re.compile(r"(sf(?:\.\w+)+):\w+")
_DATA_NAME = re.compile(r"\w[\w./-]*")
_CLASS = re.compile(r"^class (\w+)\(([^)]*)\):", re.MULTILINE)
_RULES = ("imports.py", "syntax.py")
_CACHE = PACKAGE / "__pycache__" / "syntax_digests.json"


@dataclass(frozen=True)
class Module:
    """The contribution of one file to the key.

    Attributes:
        digest: of its syntax tree.
        names: modules of this package that it may import; some do not exist ("sf.a.function").
        packages: other packages that it imports.
        files: names in its strings that can be data files in its folder.
    """

    digest: str
    names: list[str]
    packages: list[str]
    files: list[str]


@dataclass(frozen=True)
class Code:
    """The code of a stage.

    Attributes:
        modules: {path of a module or a data file, relative to the package's parent: digest}.
        packages: {package of `COUNTED`: the counted part of its version}.
        imported: all packages except this one and the standard library.
    """

    modules: dict[str, str]
    packages: dict[str, str]
    imported: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """The hash of the modules, without the packages."""
        return _digest(json.dumps(self.modules, sort_keys=True).encode())


def code_of(start: Path) -> Code:
    """The code of the module in the file `start` and of its imports."""
    reader = _reader()
    runner = RUNNER if start.name == "report.py" else RUNNER | LOOKS
    # A name is looked up once a call: modules may come and go between two calls.
    find = functools.cache(module_file)
    modules: dict[str, str] = {}
    packages: set[str] = set()
    around = _shown(start).split("/")[:-1]
    waiting, visited = [start, *_module_files(".".join(around), (), find)], set[Path]()
    followed: set[str] = set()
    while waiting:
        file = waiting.pop()
        if file in visited:
            continue
        visited.add(file)
        module = reader.module(file)
        modules[_shown(file)] = module.digest
        packages.update(module.packages)
        for data in _data_files(file, module.files):
            modules[_shown(data)] = _digest(data.read_bytes())
        for name in module.names:
            if name not in followed:
                followed.add(name)
                waiting += _module_files(name, runner, find)
    reader.save()
    versions = counted_versions(packages)
    return Code(dict(sorted(modules.items())), versions, frozenset(packages))


@functools.cache
def stage_code(stage: str) -> Code:
    """The code of a stage of `sf run`."""
    return code_of(PACKAGE / "stages" / f"{stage}.py")


def module_file(name: str) -> Path | None:
    """The file of a module of this package, by its dotted name."""
    base = PACKAGE.parent.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _module_files(
    name: str, runner: Collection[str], find: Callable[[str], Path | None]
) -> list[Path]:
    """The files that importing `name` runs: its own and its parents', without the runner's."""
    parts = name.split(".")
    names = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    if any(inner in runner for inner in names):
        return [PACKAGE / "__init__.py"]
    return [file for inner in names if (file := find(inner)) is not None]


def _shown(file: Path) -> str:
    inside = file.is_relative_to(PACKAGE.parent)
    return file.relative_to(PACKAGE.parent).as_posix() if inside else file.name


def _data_files(file: Path, names: Iterable[str]) -> list[Path]:
    """The data that a module names: files, and all files of folders, next to it."""
    paths: set[Path] = set()
    for name in names:
        path = file.parent / name
        paths.update([path] if path.is_file() else path.rglob("*"))
    return sorted(path for path in paths if path.is_file() and path.suffix not in (".py", ".pyc"))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class _Reader:
    """Reads modules, with a cache next to Python's compiled files."""

    def __init__(self) -> None:
        self.known: dict[str, list[Any]] = _read_cache()
        self.changed = False
        self.read: dict[tuple[Path, int, int, int], Module] = {}

    def module(self, file: Path) -> Module:
        """The module in `file`, read again only if the file's status changed."""
        status = file.stat()
        version = (file, status.st_size, status.st_mtime_ns, status.st_ino)
        if version not in self.read:
            self.read[version] = self._module(file)
        return self.read[version]

    def _module(self, file: Path) -> Module:
        source = file.read_bytes()
        sections = sorted(_derived(_bases(source), _all_sections()))
        address = _digest(repr((_rules(), sections)).encode() + source)
        name = _shown(file)
        if name not in self.known or self.known[name][0] != address:
            self.known[name] = [address, asdict(_read_module(file, source, sections))]
            self.changed = True
        return Module(**self.known[name][1])

    def save(self) -> None:
        if not self.changed:
            return
        self.changed = False
        try:
            with replacing(_CACHE, shared=True) as part:
                part.write_text(json.dumps(self.known), encoding="utf-8")
        except OSError:
            return  # read-only installation: its modules are read every time


@functools.cache
def _reader() -> _Reader:
    return _Reader()


def _read_cache() -> dict[str, list[Any]]:
    try:
        known = json.loads(_CACHE.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


@functools.cache
def _rules() -> str:
    """A hash of the rules for reading modules; it invalidates caches from other rules."""
    return _digest(b"".join(Path(__file__).with_name(name).read_bytes() for name in _RULES))


@functools.cache
def _all_sections() -> frozenset[str]:
    """Names of all parameter sections of this package."""
    bases: dict[str, list[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        bases |= _bases(file.read_bytes())
    return _derived(bases, frozenset({"Section"}))


def _bases(source: bytes) -> dict[str, list[str]]:
    """{class: its bases} for the top-level classes of a module."""
    classes = _CLASS.findall(source.decode("utf-8"))
    return {name: re.findall(r"\w+", bases) for name, bases in classes}


def _derived(bases: Mapping[str, list[str]], sections: frozenset[str]) -> frozenset[str]:
    """The classes in `bases` that are or derive from `sections`, and "Section"."""
    known = set(sections)
    while more := {name for name in bases.keys() - known if known & set(bases[name])}:
        known |= more
    return frozenset(known & (bases.keys() | {"Section"}))


def _read_module(file: Path, source: bytes, sections: list[str]) -> Module:
    tree = ast.parse(source)
    names: set[str] = set()
    files: set[str] = set()
    for node in counted_nodes(tree, sections):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(file, node)
            names.update([origin, *(f"{origin}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if line := _REGISTRY_LINE.fullmatch(node.value):
                names.add(line[1])
            if _is_data_name(file, node.value):
                files.add(node.value)
    names |= {sf.EXPORTS[name[3:]] for name in names if name[3:] in sf.EXPORTS}
    own = {name for name in names if name.split(".")[0] == PACKAGE.name}
    packages = {name.split(".")[0] for name in names - own}
    return Module(
        digest=syntax_digest(tree, sections),
        names=sorted(own),
        packages=sorted(packages - sys.stdlib_module_names),
        files=sorted(files),
    )


def _origin(file: Path, node: ast.ImportFrom) -> str:
    """The absolute name of the imported module."""
    if not node.level:
        return node.module or ""
    around = _shown(file).removesuffix(".py").split("/")[: -node.level]
    return ".".join([*around, *([node.module] if node.module else [])])


def _is_data_name(file: Path, text: str) -> bool:
    """Whether a string can name data next to `file`: a file, or a folder other than a package."""
    if not _DATA_NAME.fullmatch(text) or len(text) > 100:
        return False
    path = file.parent / text
    return "." in text or (path.is_dir() and not (path / "__init__.py").exists())
