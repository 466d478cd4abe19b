"""The record of the attention that a checkpoint was trained with, its writer and its reader.

The text part of config.json contains the record under `trained_attention`, so every way to load the
model reads it. `sparsity.json` next to the weights repeats it with the provenance. The weights
that a method adds are saved in the checkpoint's safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import nn

from sf.atomic_files import write_text
from sf.attention.blocks.moba import MobaAttention
from sf.attention.blocks.nsa import NsaAttention
from sf.attention.blocks.replace import BlockAttention, attach
from sf.attention.blocks.videonsa import VideoNsaAttention
from sf.errors import DataError

__all__ = [
    "SPARSITY_FILE",
    "TrainedAttention",
    "equip",
    "note_trained",
    "recall",
    "record_of",
    "trained_attention",
    "write_sparsity",
]

FIELD = "trained_attention"
SPARSITY_FILE = "sparsity.json"
BLOCKS: dict[str, type[Any]] = {
    "moba": MobaAttention,
    "nsa": NsaAttention,
    "videonsa": VideoNsaAttention,
}
SELECTORS = ("zipvl", "top_k", "threshold")
_REMEDY = "train it again, or restore the files that training wrote"


@dataclass(frozen=True)
class TrainedAttention:
    """The record of one checkpoint.

    Attributes:
        method: key of `sf.baselines.METHODS`.
        value: of the method's hyperparameter at inference; None for one of `BLOCKS`.
        settings: of one of `BLOCKS`, by the fields of their classes; empty for a selector.
    """

    method: str
    value: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, attention: BlockAttention) -> Self:
        """The record of one of `BLOCKS`."""
        name = next(name for name, kind in BLOCKS.items() if isinstance(attention, kind))
        return cls(name, settings=asdict(attention))

    @property
    def block(self) -> BlockAttention | None:
        """The attention that replaces the model's own; None for a selector."""
        if self.method not in BLOCKS:
            return None
        attention: BlockAttention = BLOCKS[self.method](**self.settings)
        return attention

    def note(self) -> dict[str, Any]:
        """As config.json holds it."""
        value = {} if self.value is None else {"value": self.value}
        return {"name": self.method, **value, **self.settings}


def record_of(source: Any) -> TrainedAttention | None:
    """The method that a checkpoint was trained with; None without a record (a base model).

    Args:
        source: a model, perhaps PEFT-wrapped, its configuration, or a checkpoint's folder.

    Raises:
        DataError: an unknown method, a malformed record, or a folder whose config.json and
            `sparsity.json` contradict each other.
    """
    if isinstance(source, Path):
        return _of_folder(source)
    config = getattr(source, "config", source)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return _record(getattr(text, FIELD, None), f"config.json: {FIELD}")


def _of_folder(folder: Path) -> TrainedAttention | None:
    config = _json(folder / "config.json")
    text = config.get("text_config") or config
    noted = _record(text.get(FIELD), f"config.json: {FIELD}")
    if not (folder / SPARSITY_FILE).is_file():
        return noted
    content = _json(folder / SPARSITY_FILE)
    given = {"name": content.get("method"), "value": content.get("value")}
    beside = _record({**given, **(content.get("settings") or {})}, SPARSITY_FILE)
    assert beside is not None
    if noted is None and beside.block is None:
        return beside
    if noted != beside:
        has = "nothing" if noted is None else str(noted.note())
        rule = f"config.json contradicts it: {FIELD} there is {has}"
        raise DataError(f"{folder / SPARSITY_FILE}", beside.note(), rule, _REMEDY)
    return beside


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("checkpoint", str(file), f"it cannot be read: {error}", _REMEDY) from error
    if not isinstance(content, dict):
        raise DataError("checkpoint", str(file), "it must contain a JSON object", _REMEDY)
    return content


def _record(note: Any, where: str) -> TrainedAttention | None:
    if note is None or note == {}:
        return None
    known = [*BLOCKS, *SELECTORS]
    if not isinstance(note, Mapping) or note.get("name") not in known:
        name = note.get("name") if isinstance(note, Mapping) else note
        raise DataError(where, name, f"the method must be one of {sorted(known)}", _REMEDY)
    settings = {key: value for key, value in note.items() if key not in ("name", "value")}
    record = TrainedAttention(str(note["name"]), note.get("value"), settings)
    try:
        fits = record.block is not None or (not settings and isinstance(record.value, float | int))
    except TypeError:
        fits = False
    if not fits:
        rule = f"does not hold the settings of {record.method}"
        raise DataError(where, dict(note), rule, _REMEDY)
    return record


def trained_attention(config: Any) -> BlockAttention | None:
    """The block attention of a model's configuration; None for the model's own attention.

    Raises:
        DataError: see `record_of`.
    """
    record = record_of(config)
    return None if record is None else record.block


def note_trained(model: Any, attention: BlockAttention | TrainedAttention) -> None:
    """Record the attention in the model's configuration, and give the model its weights."""
    if isinstance(attention, BlockAttention):
        attention = TrainedAttention.of(attention)
    setattr(model.config.get_text_config(), FIELD, attention.note())
    equip(model)


def recall(config: Any, folder: Path) -> None:
    """Put a folder's record into a configuration that was read from it.

    Raises:
        DataError: see `record_of`.
    """
    record = _of_folder(folder)
    if record is not None:
        setattr(config.get_text_config(), FIELD, record.note())


def equip(model: nn.Module) -> None:
    """Add the modules that the configuration's attention needs, with fresh weights."""
    attention = trained_attention(model.config)
    if attention is not None and attention.weights:
        attach(model, attention)


def write_sparsity(folder: Path, record: TrainedAttention, provenance: Mapping[str, Any]) -> None:
    """Write `sparsity.json` into a checkpoint's folder; it appears at once.

    Args:
        folder: of the checkpoint, whose config.json holds the same record.
        record: what the weights were trained with.
        provenance: plain values: objective, base, data, parameters, versions.
    """
    content = {
        "method": record.method,
        "value": record.value,
        "settings": record.settings,
        "objective": provenance.get("objective"),
        "provenance": provenance,
    }
    write_text(folder / SPARSITY_FILE, json.dumps(content, indent=2, default=str) + "\n")
