"""What a result came from: hashes of parameters, inputs and code, commit, versions, hardware."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import sf
from sf.errors import DataError
from sf.layout import STAMP

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
# How a stage is run, not what it does.
RUNNER = (
    "jobs.py",
    "mlflow_runs.py",
    "mlflow_store.py",
    "provenance.py",
    "ranks.py",
    "redaction.py",
    "tracking.py",
)
PACKAGES = ("torch", "transformers", "trl", "lmms_eval", "accelerate", "datasets", "numpy", "av")


def digest_of(content: object) -> str:
    """A 16-character hash of JSON-able content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def file_digests(folder: Path) -> dict[str, list[Any]]:
    """{relative path: [size in bytes, digest]} of all files below `folder` but the stamp."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STAMP)
    return {
        str(path.relative_to(folder)): [path.stat().st_size, file_digest(path)] for path in files
    }


def damaged(folder: Path, files: dict[str, list[Any]]) -> list[str]:
    """The recorded files that are missing below `folder` or have another content."""
    return [
        name
        for name, (size, digest) in files.items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size != size
        or file_digest(folder / name) != digest
    ]


def input_digest(path: Path) -> str:
    """A stage's result by its stamp's content hashes; any other file or folder by sizes and times.

    Raises:
        DataError: the path does not exist.
    """
    stamp = path / STAMP
    if stamp.is_file():
        return digest_of(json.loads(stamp.read_text(encoding="utf-8"))["files"])
    if not path.exists():
        raise DataError(
            "input", str(path), "does not exist", "run the stage that writes it, or `make study`"
        )
    if path.is_dir():
        raise DataError(
            "input", str(path), f"has no {STAMP}: it is not complete", "run its stage again"
        )
    return digest_of([path.stat().st_size, path.stat().st_mtime_ns])


LAZY_IMPORT = re.compile(r"(sf(?:\.\w+)+):\w+")  # "sf.baselines.full:Full", as a registry's line
DATA_NAME = re.compile(r"\w[\w.-]*\.\w+")


@functools.cache
def named_files(file: Path) -> frozenset[Path]:
    """The files of this package that `file` names: in imports, inside functions and as text too,
    and data beside it by their plain names, such as "published.csv".
    """
    if file.suffix != ".py":
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lazy = LAZY_IMPORT.fullmatch(node.value)
            names.update([lazy[1]] if lazy else [])
            if DATA_NAME.fullmatch(node.value) and file.with_name(node.value).is_file():
                found.add(file.with_name(node.value))
    names |= {sf.EXPORTS[name[3:]] for name in names if name[3:] in sf.EXPORTS}
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            base = ROOT.joinpath(*parts[:depth])
            for candidate in (base.with_suffix(".py"), base / "__init__.py"):
                if parts[0] == "sf" and candidate.is_file():
                    found.add(candidate)
    return frozenset(found)


def code_files(start: Path) -> list[Path]:
    """`start` and every file of this package that it names, directly or not."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo.extend(other for other in named_files(file) if other.name not in RUNNER)
    return sorted(seen)


def code_digest(start: Path) -> str:
    """A hash of `start` and of what it names of this package, the stage runner left out."""
    return digest_of(
        {
            str(path.relative_to(ROOT)): file_digest(path)
            for path in code_files(start)
            if path.name not in RUNNER
        }
    )


def identity(
    stage: str, module: ModuleType, parameters: BaseModel, inputs: Iterable[Path]
) -> dict[str, Any]:
    """What defines a result (hashed to `key`) and what it was made with."""
    assert module.__file__ is not None
    values = json.loads(parameters.model_dump_json())
    input_hashes = {str(path): input_digest(path) for path in inputs}
    external = getattr(module, "external_inputs", None)
    if external is not None:
        input_hashes |= {str(path): input_digest(path) for path in external(parameters)}
    code_hash = code_digest(Path(module.__file__))
    defining = {name: value for name, value in values.items() if name != "output"}
    key = digest_of([stage, defining, sorted(input_hashes.values()), code_hash])
    return {
        "stage": stage,
        "key": key,
        "parameters": values,
        "parameter_hash": digest_of(defining),
        "inputs": input_hashes,
        "code_hash": code_hash,
        **commit(),
        "versions": versions(),
        "hardware": hardware(),
    }


def commit() -> dict[str, Any]:
    """{"commit": hash or "unknown", "dirty": whether tracked files were changed}."""
    try:
        head = _git("rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": None}


def _git(*words: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores and memory; the stage adds its accelerator where it uses one."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model, "cores": cores, "memory_gib": round(memory, 1)}
