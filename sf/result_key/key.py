"""The key of a result, and the differences between two keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel

from sf.fields import flat
from sf.layout import RECORD, STAMP, work_folder
from sf.result_key.contents import damaged, digest_of, input_digest
from sf.result_key.imports import Code, code_of
from sf.result_key.stamp import read_stamp

__all__ = ["Change", "Key", "State", "input_paths", "key_of", "state_of", "used_parameters"]

NO_VALUE = "absent"


@dataclass(frozen=True)
class Change:
    """One reason why a result is not valid.

    Attributes:
        kind: of the changed item.
        name: of the parameter, input, module, package or file.
        old: the recorded value, or "absent".
        new: the current value, or "absent".
    """

    kind: Literal["parameter", "input", "code", "package", "file", "record"]
    name: str
    old: Any = NO_VALUE
    new: Any = NO_VALUE

    def __str__(self) -> str:
        if self.kind in ("parameter", "package"):
            return f"{self.kind} {self.name}: {self.old} → {self.new}"
        if self.kind == "code" and NO_VALUE in (self.old, self.new):
            return f"code {self.name} is {'new' if self.old == NO_VALUE else 'gone'}"
        if self.kind in ("input", "code"):
            return f"{self.kind} {self.name} {self.new if self.kind == 'input' else 'changed'}"
        return f"{self.kind} {self.name} {self.new}"


@dataclass(frozen=True)
class Key:
    """Everything that can change a result.

    Attributes:
        stage: of `sf run`.
        parameters: the values that the stage uses, except paths.
        inputs: {name: digest of the contents}.
        code: {module: digest of its syntax tree}; `sf.result_key.imports`.
        packages: {package: counted part of its version}; `sf.result_key.packages`.
    """

    stage: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: Mapping[str, str]
    packages: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The key as one hash."""
        return digest_of([self.stage, self.parameters, self.inputs, self.code, self.packages])

    def record(self) -> dict[str, Any]:
        """The parts of the key, as stored in a stamp."""
        return {
            "key": self.digest,
            "key_parameters": self.parameters,
            "inputs": self.inputs,
            "code": self.code,
            "packages": self.packages,
        }

    def changes(self, stamp: Mapping[str, Any]) -> list[Change]:
        """The differences from the key that a stamp records; empty for equal keys."""
        changes: list[Change] = []
        for kind, part, now in (
            ("parameter", "key_parameters", self.parameters),
            ("input", "inputs", self.inputs),
            ("code", "code", self.code),
            ("package", "packages", self.packages),
        ):
            then = stamp.get(part)
            if not isinstance(then, dict):
                return [Change("record", STAMP, new="was written by another version of this code")]
            for name in dict.fromkeys([*then, *now]):
                old, new = then.get(name, NO_VALUE), now.get(name, NO_VALUE)
                if old != new:
                    changes.append(_change(kind, name, old, new))
        if not changes and stamp.get("key") != self.digest:
            changes.append(Change("record", STAMP, new="does not have the key of its parts"))
        return changes


def _change(kind: Any, name: str, old: Any, new: Any) -> Change:
    if kind == "input" and NO_VALUE not in (old, new):
        return Change(kind, name, old, "has other content")
    if kind == "input":
        return Change(kind, name, old, "is new" if old == NO_VALUE else "is gone")
    return Change(kind, name, old, new)


@dataclass(frozen=True)
class State:
    """Whether a result is valid.

    Attributes:
        status: "holds", "stale" or "missing".
        changes: the reasons why it is stale.
        stamp: the compared record; empty if missing.
    """

    status: Literal["holds", "stale", "missing"]
    changes: tuple[Change, ...] = ()
    stamp: Mapping[str, Any] = field(default_factory=dict)


def state_of(output: Path, key: Key) -> State:
    """Whether the result in `output` is complete, undamaged and matches `key`.

    `sf run`, `sf status` and the start of Snakemake all use this function. The copy of the stamp in
    the work folder replaces a lost or damaged one.
    """
    stamp = read_stamp(output / STAMP) or read_stamp(work_folder(output) / RECORD)
    if stamp is None or not output.is_dir():
        return State("missing")
    changes = key.changes(stamp)
    if not changes:
        names = damaged(output, stamp["files"])
        changes = [Change("file", name, new="is missing or has other bytes") for name in names]
    return State("stale" if changes else "holds", tuple(changes), stamp)


def used_parameters(parameters: BaseModel) -> dict[str, Any]:
    """The values of a stage's parameters by dotted name.

    Paths are excluded: their contents count instead.
    """
    values = json.loads(parameters.model_dump_json())
    paths = {name for name, value in parameters if isinstance(value, Path)}
    return flat({name: value for name, value in values.items() if name not in paths})


def input_paths(module: ModuleType, parameters: BaseModel) -> dict[str, Path]:
    """{name: input folder or file}: the stage's path parameters, or the result of its `inputs`."""
    if hasattr(module, "inputs"):
        return dict(module.inputs(parameters))
    return {
        name: value for name, value in parameters if isinstance(value, Path) and name != "output"
    }


def key_of(
    stage: str, module: ModuleType, parameters: BaseModel, inputs: Mapping[str, str] | None = None
) -> Key:
    """The key of the result that a stage would write now.

    Args:
        stage: of `sf run`.
        module: its module.
        parameters: of its `Parameters` class.
        inputs: digests of its inputs; computed by default.

    Raises:
        DataError: see `input_digest`.
    """
    if inputs is None:
        work = work_folder(parameters.output)  # type: ignore[attr-defined]
        paths = input_paths(module, parameters)
        inputs = {name: input_digest(path, work) for name, path in paths.items()}
    code = _code(module)
    return Key(stage, used_parameters(parameters), dict(inputs), code.modules, code.packages)


def _code(module: ModuleType) -> Code:
    assert module.__file__ is not None
    return code_of(Path(module.__file__))
