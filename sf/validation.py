"""Parameters from files: reading YAML, merging, and validation with one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sf.errors import ConfigError
from sf.fields import flat
from sf.redaction import without_credentials

__all__ = ["RENAMED", "field_differences", "merged", "read_yaml", "validated"]

Model = TypeVar("Model", bound=BaseModel)
RENAMED = {
    "profile.subjects": "profile.models",
    "profile.fit": "profile.find_largest",
    "profile.fit_gib": "profile.memory_limit_gib",
}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`; mappings are merged, everything else is replaced.

    A change to None removes the value (RFC 7396).
    """
    result = dict(values)
    for name, change in changes.items():
        old = result.get(name)
        if change is None:
            result.pop(name, None)
        elif isinstance(change, Mapping):
            result[name] = merged(old if isinstance(old, Mapping) else {}, change)
        else:
            result[name] = change
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "parameters file", str(path), "does not exist", "choose a scale: `sf use mini`"
        ) from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(str(path), None, f"is not valid YAML: {error}", "correct it") from error
    if not isinstance(content, dict):
        raise ConfigError(str(path), None, "must contain a mapping", "see params/defaults.yaml")
    return content


def validated(model: type[Model], values: Mapping[str, Any], where: str = "") -> Model:
    """`values` as an instance of `model`.

    Raises:
        ConfigError: names every offending field with its value, the rule and the remedy.
    """
    _refuse_secrets(values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _config_error(model, error, where) from None


def _refuse_secrets(values: Mapping[str, Any], where: str) -> None:
    """Reject secrets, since parameters are copied to records, logs and pages that others may read.

    Raises:
        ConfigError: a value contains a URL with user and password or a secret parameter.
    """
    for name, value in flat(values).items():
        shown = without_credentials(str(value))
        if shown != str(value):
            rule = "contains a secret, and parameters are written into every result"
            remedy = "remove it; HF_TOKEN and the like are read from the environment"
            raise ConfigError(f"{where}{name}", shown, rule, remedy)


def _config_error(model: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    # An unknown key comes first: a field missing next to it is usually the misspelt one.
    errors = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    listed: list[ConfigError] = []
    for error_of_field in (_one_error(model, entry, where) for entry in errors):
        # Each member of a union reports its errors; the best match reports the deepest ones.
        listed = [e for e in listed if not error_of_field.field.startswith(f"{e.field}.")]
        if not any(f"{e.field}.".startswith(f"{error_of_field.field}.") for e in listed):
            listed.append(error_of_field)
    first = listed[0]
    more = "".join(f"\n  {other}" for other in listed[1:])
    return ConfigError(first.field, first.value, first.rule, first.remedy + more)


def _one_error(model: type[BaseModel], entry: Any, where: str) -> ConfigError:
    cause = entry.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return ConfigError(f"{where}{cause.field}", cause.value, cause.rule, cause.remedy)
    field = ".".join(_names(model, entry["loc"])) or model.__name__
    value: object = None if isinstance(entry["input"], dict) else entry["input"]
    if entry["type"] == "extra_forbidden":
        known = _fields_at(model, entry["loc"][:-1])
        near = get_close_matches(str(entry["loc"][-1]), known, n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        if field in RENAMED:
            remedy = f"its name is now {RENAMED[field]}"
        return ConfigError(f"{where}{field}", value, "is not a known parameter", remedy)
    if entry["type"] == "missing":
        remedy = "add it; params/defaults.yaml has an example"
        return ConfigError(f"{where}{field}", None, "is required", remedy)
    rule = entry["msg"].removeprefix("Value error, ")
    return ConfigError(f"{where}{field}", value, rule, "correct it")


def _names(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys of a location in a model, without pydantic's names of union members."""
    names: list[str] = []
    owners, tagged = [model], False
    for part in location:
        fields = [owner.model_fields[str(part)] for owner in owners if part in owner.model_fields]
        member = tagged or "[" in str(part) or part in {owner.__name__ for owner in owners}
        tagged = any(field.discriminator is not None for field in fields)
        if fields:
            owners = [inner for field in fields for inner in _models_in(field.annotation)]
        if fields or not member:
            names.append(str(part))
    return names


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The names of the parameters at a location in a model."""
    owners: list[Any] = [model]
    for part in location:
        inner = []
        for owner in owners:
            if isinstance(owner, type) and issubclass(owner, BaseModel):
                field = owner.model_fields.get(str(part))
                inner += _models_in(field.annotation) if field else [owner]
        owners = inner
    names = [name for owner in owners for name in owner.model_fields]
    return list(dict.fromkeys(names))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def field_differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every leaf that differs; None if absent."""
    flat_old, flat_new = flat(old), flat(new)
    names = dict.fromkeys([*flat_old, *flat_new])
    return [
        (name, flat_old.get(name), flat_new.get(name))
        for name in names
        if flat_old.get(name) != flat_new.get(name)
    ]
