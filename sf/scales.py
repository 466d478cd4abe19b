"""Named scales: `params/defaults.yaml`, the changes of each scale, and the resulting file.

A scale's file contains only the differences from the defaults, or from the scale named by its key
`extends`. Mappings are merged, null removes a key (`sf.validation.merged`). Rendering works on
lines: the resulting file has the comments, order and spacing of the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sf.atomic_files import write_text
from sf.config import Params
from sf.errors import ConfigError
from sf.validation import field_differences, merged, read_yaml, validated

__all__ = [
    "load_scale",
    "render_scale",
    "scale_names",
    "scale_values",
    "use_scale",
    "value_sources",
]

FOLDER = Path("params")
DEFAULTS = "defaults"
EXTENDS = "extends"
_KEY = re.compile(r"( *)([^\s#:\-][^:#]*):(?: +(.*))?$")


def scale_names(folder: Path = FOLDER) -> list[str]:
    """The scales that have a file."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != DEFAULTS)


def load_scale(name: str, folder: Path = FOLDER) -> Params:
    """The validated parameters of a scale.

    Raises:
        ConfigError: no such scale, or its values are invalid.
    """
    return validated(Params, scale_values(name, folder), f"{folder / name}.yaml: ")


def scale_values(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The values of a scale, not validated.

    Raises:
        ConfigError: no such scale, or scales that extend each other.
    """
    values = read_yaml(folder / f"{DEFAULTS}.yaml")
    for path in _chain(name, folder):
        changes = read_yaml(path)
        changes.pop(EXTENDS, None)
        values = merged(values, changes)
    return values


def render_scale(name: str, folder: Path = FOLDER) -> str:
    """The complete parameters file of a scale, with the defaults' comments and order.

    Raises:
        ConfigError: see `scale_values`; or a value in a file spans several lines.
    """
    tree = _parsed(folder / f"{DEFAULTS}.yaml")
    for path in _chain(name, folder):
        changes = _parsed(path)
        changes.children = [child for child in changes.children if child.key != EXTENDS]
        _overlay(tree, changes)
    text = "\n".join(tree.lines()) + "\n"
    if YAML(typ="safe", pure=True).load(text) != scale_values(name, folder):
        rule = "changes part of a value that is written on one line"
        remedy = "write the complete value, or its keys on separate lines here and in defaults.yaml"
        raise ConfigError(f"{folder / name}.yaml", None, rule, remedy)
    return text


def use_scale(
    name: str, force: bool = False, current: Path = Path("params.yaml"), folder: Path = FOLDER
) -> list[tuple[str, Any, Any]]:
    """Write the file of a scale to `current`.

    Args:
        name: of the scale.
        force: overwrite edits.
        current: the parameters file of the checkout.
        folder: of the scales.

    Returns:
        (dotted name, old value, new value) of every value that changed.

    Raises:
        ConfigError: no such scale, a scale with errors, or `current` was edited.
    """
    load_scale(name, folder)
    text = render_scale(name, folder)
    old = read_yaml(current) if current.is_file() else {}
    if old and not force:
        _refuse_edited(current, old, folder)
    write_text(current, text)
    return field_differences(old, read_yaml(current))


def value_sources(path: Path) -> dict[str, str]:
    """The source of each value of a parameters file by dotted name: the comment on its line.

    Raises:
        ConfigError: a value is not on the line of its key.
    """
    return dict(_comments(_parsed(path), ""))


def _comments(node: _Node, prefix: str) -> Iterator[tuple[str, str]]:
    for child in node.children:
        yield from _comments(child, f"{prefix}{child.key}.")
        if not child.children:
            yield f"{prefix}{child.key}", (child.line or "").partition(" # ")[2].strip()


def _refuse_edited(current: Path, old: dict[str, Any], folder: Path) -> None:
    """Refuse to overwrite a file that differs from every scale."""
    origin = old.get("scale")
    if origin in scale_names(folder):
        if current.read_text(encoding="utf-8") == render_scale(str(origin), folder):
            return
        edits = field_differences(scale_values(str(origin), folder), old)
        changes = [f"{name}: {before} → {now}" for name, before, now in edits]
        rule = f"was edited since `sf use {origin}`: {'; '.join(changes) or 'comments only'}"
    else:
        rule = f"belongs to a scale without a file in {folder}/"
    remedy = f"keep it as {folder}/NAME.yaml with scale: NAME, or drop the edits with --force"
    raise ConfigError(str(current), None, rule, remedy)


def _chain(name: str, folder: Path) -> list[Path]:
    """The files of a scale, starting with the one that the others extend."""
    chain: list[Path] = []
    wanted: Any = name
    while wanted is not None:
        names = scale_names(folder)
        if wanted not in names:
            known = ", ".join(names) or "none: run this in the checkout"
            where = EXTENDS if chain else "scale"
            rule = f"has no file in {folder}/"
            raise ConfigError(where, wanted, rule, f"choose one of: {known}")
        path = folder / f"{wanted}.yaml"
        if path in chain:
            raise ConfigError(
                f"{path}: {EXTENDS}", wanted, "extends itself", "extend another scale"
            )
        chain.append(path)
        wanted = read_yaml(path).get(EXTENDS)
    return chain[::-1]


@dataclass
class _Node:
    """One key of a YAML file with the keys below it.

    Attributes:
        key: of the mapping.
        line: the original line; None for the file and for a removed key.
        value: text between key and comment.
        above: comments and empty lines before it.
        children: keys below it.
    """

    key: str = ""
    line: str | None = None
    value: str = ""
    above: list[str] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield from self.above
        if self.line is not None:
            yield self.line
        for child in self.children:
            yield from child.lines()


def _parsed(path: Path) -> _Node:
    """The keys of a file by their indentation.

    Raises:
        ConfigError: a value that does not stand on the line of its key.
    """
    root = _Node()
    stack = [(-1, root)]
    above: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            above.append(line)
            continue
        match = _KEY.fullmatch(line)
        if match is None:
            rule = "must be a key with its value, or a key with keys below it"
            raise ConfigError(f"{path}, line {number}", line.strip(), rule, "put lists in brackets")
        value = re.split(r"(?:^| )#", match[3] or "", maxsplit=1)[0].strip()
        while stack[-1][0] >= len(match[1]):
            stack.pop()
        node = _Node(match[2].strip(), line, value, above)
        stack[-1][1].children.append(node)
        stack.append((len(match[1]), node))
        above = []
    return root


def _overlay(node: _Node, changes: _Node) -> None:
    """Replace the node's lines by the changed ones."""
    place = len(node.children)
    for change in changes.children:
        keys = [child.key for child in node.children]
        if change.key not in keys:
            if change.value != "null":
                node.children.insert(place, change)
                place += 1
            continue
        place = keys.index(change.key)
        own = node.children[place]
        place += 1
        if change.children:
            own.value = ""
            _overlay(own, change)
        else:
            own.line = None if change.value == "null" else change.line
            own.children, own.value = [], change.value
