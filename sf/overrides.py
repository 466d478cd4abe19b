"""`--set NAME=VALUE`: overrides of a job's parameters by dotted name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sf.errors import ConfigError
from sf.validation import RENAMED, merged

__all__ = ["Parameter", "overridden", "parameters_of"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a stage.

    Attributes:
        name: dotted, such as "train.learning_rate".
        description: its meaning.
        kind: its type, such as "number" or "cosine | linear".
        default: of its class; None if a value is required.
    """

    name: str
    description: str
    kind: str
    default: Any


def parameters_of(model: type[BaseModel], values: Mapping[str, Any]) -> list[Parameter]:
    """All parameters of a stage, including each parameter of its sections.

    Args:
        model: the stage's parameters class.
        values: of a job; they select the class of a tagged union.
    """
    return list(_walk(model, values, ""))


def _walk(model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Iterator[Parameter]:
    for name, info in model.model_fields.items():
        value = values.get(name)
        sections = _sections(info, value)
        if sections:
            inner = value if isinstance(value, Mapping) else {}
            for section in sections:
                yield from _walk(section, inner, f"{prefix}{name}.")
        if not sections or _kinds(info.annotation):
            default = None if info.is_required() else info.get_default(call_default_factory=True)
            kind = " | ".join(dict.fromkeys(_kinds(info.annotation)))
            yield Parameter(f"{prefix}{name}", info.description or "", kind, default)


def _sections(info: FieldInfo, value: Any) -> list[type[BaseModel]]:
    """The possible sections of a field; for a tagged union, the one that the value names."""
    sections = [part for part in _parts(info.annotation) if _is_section(part)]
    tag = info.discriminator
    if isinstance(tag, str) and isinstance(value, Mapping):
        return [s for s in sections if value.get(tag) in get_args(s.model_fields[tag].annotation)]
    return sections


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [inner for part in get_args(annotation) for inner in _parts(part)]
    return [annotation]


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _kinds(annotation: Any) -> list[str]:
    """The possible types of a value, except sections."""
    names = {int: "integer", float: "number", bool: "true | false", str: "text"}
    kinds = []
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            kinds += [str(choice) for choice in get_args(part)]
        elif get_origin(part) is list:
            kinds.append(f"[{', '.join(_kinds(get_args(part)[0]))}, …]")
        elif part is not NoneType and not _is_section(part):
            kinds.append(names.get(part, getattr(part, "__name__", str(part)).lower()))
    return kinds


def overridden(
    model: type[BaseModel], values: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any]:
    """The values of a job with overrides applied, not validated.

    Args:
        model: the stage's parameters class.
        values: of the job.
        words: "NAME=VALUE" each. NAME is a dotted name or its end, if only one name has that end;
            VALUE is YAML, and null removes an optional value.

    Raises:
        ConfigError: a word without "=", or a name that matches no parameter or several.
    """
    result = dict(values)
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name:
            raise ConfigError("--set", word, "must be NAME=VALUE", "write steps=100")
        change: Any = _value(word, text)
        for part in reversed(full_name(model, result, name).split(".")):
            change = {part: change}
        result = merged(result, change)
    return result


def _value(word: str, text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        rule, remedy = "is not a YAML value", "write a number, text, or a list such as [0.5, 0.9]"
        raise ConfigError("--set", word, rule, remedy) from None


def full_name(model: type[BaseModel], values: Mapping[str, Any], name: str) -> str:
    """The dotted name that ends with `name`.

    Raises:
        ConfigError: no parameter has this name, or several end with it.
    """
    known = list(dict.fromkeys(_with_sections(p.name for p in parameters_of(model, values))))
    if name in known:
        return name
    fitting = [other for other in known if other.endswith(f".{name}")]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        rule = f"matches {len(fitting)} parameters"
        raise ConfigError("--set", name, rule, f"write one of: {', '.join(fitting)}")
    ends = {other.rpartition(".")[2]: other for other in reversed(known)}
    near = get_close_matches(name, known, n=2, cutoff=0.8) or [
        ends[end] for end in get_close_matches(name.rpartition(".")[2], ends, n=2)
    ]
    remedy = f"did you mean {' or '.join(near)}?" if near else "`sf run STAGE --help` lists them"
    for old, new in RENAMED.items():
        if name in (old, old.rpartition(".")[2]):
            remedy = f"its name is now {new}"
    raise ConfigError("--set", name, "is not a known parameter", remedy)


def _with_sections(names: Iterator[str]) -> Iterator[str]:
    """The names, and those of their sections, which can be set as a whole."""
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))
